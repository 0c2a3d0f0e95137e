"""pyinfra reads this first. It ends with exit code 0 where that is no success: after a --limit that matches no host (a
typing error), before any command is loaded, and after a --dry, whatever that found."""

import atexit
import os
import sys


def nothing_was_done() -> None:
    from tasks.lib import report

    commands = [word for word in sys.argv[1:] if word == "deploy.py" or word.startswith("tasks/")]
    if commands and not report.RESULTS and not sys.exc_info()[0]:
        print(f"{commands[0]}: was not run for any host; is there a typing error in --limit?", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)
    if report.dry() and report.FAILED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


atexit.register(nothing_was_done)
