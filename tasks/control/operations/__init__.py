"""pyinfra operations, one module a phase. Commands are built here, in tool.py and in the transports, and nowhere else.

Every operation records evidence for the gates, and fails its own host alone. Bad news about one host is `return False`
inside a FunctionCommand, never an exception: that would end the run for all hosts.
"""
