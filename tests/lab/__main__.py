"""python3 -m tests.lab up [--gpus N] | down | purge | status"""

import argparse

from tests.lab import lab

parser = argparse.ArgumentParser(prog="python3 -m tests.lab", description=__doc__)
parser.add_argument("verb", choices=["up", "down", "purge", "status"])
parser.add_argument("--gpus", type=int, default=2, choices=range(1, 5))
args = parser.parse_args()
lab.up(args.gpus) if args.verb == "up" else getattr(lab, args.verb)()
