"""pyinfra reads this first. It ends without a table where no host can be reached, and with exit code 0 where that is no
success: after a --limit that matches no host (a typing error), after a --dry whatever that found, and where it was the
report that found a host wanting, not an operation."""

import atexit
import logging
import os
import sys
from pathlib import Path

from pyinfra import state
from pyinfra.api.exceptions import PyinfraError

from tasks.control.reporting import recorder as report

logging.getLogger("pyinfra").addHandler(report.Unreached())


commands = report.commands()
if commands and not Path(report.inventory()).is_file():
    # pyinfra would take the name for a host's, and end well with none.
    there = ", ".join(sorted(map(str, Path("inventories").glob("*.py"))))
    raise PyinfraError(f"{report.inventory()}: there is no such inventory; expected one of {there}")


def last_word() -> None:
    silent = commands and "tasks.control.run" not in sys.modules  # pyinfra ended before it read the command
    bad = bool(report.FAILED)
    if silent and report.UNREACHED:
        from tasks.control import run
        from tasks.control.reporting import table

        run.leave_out()
        bad = not report.Report(state, run.roles(), None, table.DEPLOY).write()
    elif silent and any(word.startswith(("--limit", "--exclude")) for word in sys.argv):
        print(f"{commands[0]}: was not run for any host; is there a typing error in --limit?", file=sys.stderr)
        bad = True
    if bad:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


atexit.register(last_word)
