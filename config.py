"""pyinfra reads this first. It corrects three exit codes that would be 0, and prints a table where pyinfra prints none.

They are: a --limit or an inventory that gives no host (a typing error), a --dry that found something bad, and a host that the report
calls failed where no operation failed.
"""

import atexit
import logging
import os
import sys
from pathlib import Path

from pyinfra import state
from pyinfra.api.exceptions import PyinfraError

from tasks.control import opening
from tasks.control.command_line import CommandLine
from tasks.control.reporting.recorder import Unreached

unreached = Unreached()
logging.getLogger("pyinfra").addHandler(unreached)
command_line = CommandLine(tuple(sys.argv[1:]))

if command_line.commands and not Path(command_line.inventory).is_file():
    # pyinfra would take the name for a host's, and end well with none.
    there = ", ".join(sorted(map(str, Path("inventories").glob("*.py"))))
    raise PyinfraError(f"{command_line.inventory}: there is no such inventory; expected one of {there}")


def correct_exit_code() -> None:
    recorder = opening.recorder_of(state)
    ended_early = bool(command_line.commands) and not unreached.command_began
    if ended_early and unreached.hosts:
        recorder = opening.report_unreachable()
    bad = bool(recorder and recorder.failed)
    if recorder is None and ended_early:
        where = "--limit" if command_line.has_limit else command_line.inventory
        print(f"{command_line.commands[0]}: was not run for any host. Next: correct {where}", file=sys.stderr)
        bad = True
    if bad:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


atexit.register(correct_exit_code)
