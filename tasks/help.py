"""List all commands, and the version: python3 -m tasks.help"""

from tasks.control.commands import show

show()
