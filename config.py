"""pyinfra reads this first. A --limit that matches no host makes it end with exit code 0 before any command is loaded:
a typing error is no success."""

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


atexit.register(nothing_was_done)
