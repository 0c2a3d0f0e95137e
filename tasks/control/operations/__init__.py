"""What should be: one fat operation a phase. The only place where commands are built, with calls.py.

Every operation records evidence for the gates, and fails its own host alone: bad news about one host is `return False`
inside a FunctionCommand, never an exception, which would end the run for all.
"""
