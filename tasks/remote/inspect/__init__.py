"""The inspection of a host: it reads what is there and changes nothing.

It travels as text (tasks/control/inspection.py), because a first run finds a host that has nothing of ours. It fills the
dataclasses of tasks/shared/facts.py. What cannot be read is None, and the inspection never guesses. The control machine
decides whether what it finds is good.
"""
