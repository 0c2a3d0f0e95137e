"""python3 -m tests.lab demo | up [--gpus N] | down | purge | status

demo: from a bare machine to a deployed release: installs what is missing, starts the lab, locks, deploys.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from tests.lab import lab, machine
from tests.lab.images import ROOT


def demo() -> int:
    """What an operator types, in the lab; -> the exit code of the deploy."""
    machine.install()
    python = machine.environment(ROOT / "requirements.txt")
    lab.up()
    for task in ("tasks/lock.py", "deploy.py"):
        words = ["-y", "inventories/lab.py", task]
        print(f"\n$ pyinfra {' '.join(words)}", flush=True)
        code = subprocess.run([Path(python).with_name("pyinfra"), *words], cwd=ROOT).returncode
        if code:
            return code
    return 0


parser = argparse.ArgumentParser(
    prog="python3 -m tests.lab", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
)
parser.add_argument("verb", choices=["demo", "up", "down", "purge", "status"])
parser.add_argument("--gpus", type=int, default=2, choices=range(1, 5))
args = parser.parse_args()
if args.verb == "demo":
    sys.exit(demo())
lab.up(args.gpus) if args.verb == "up" else getattr(lab, args.verb)()
