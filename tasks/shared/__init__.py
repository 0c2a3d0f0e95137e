"""What every machine must agree on: the lock, names from a Hub, paths in a store, the facts of a host.

Pure: no files, no clock, no network. The standard library alone, as of Python 3.9. It travels with the remote programs under
the same import names, so a lock is parsed, and a name from a Hub is judged, by the same code on every machine.
"""
