"""The tool on a remote machine is one zip of these programs and release.py: `python3 tool.pyz PROGRAM ARGS…`."""

import importlib
import sys

PROGRAMS = (
    "bundle",
    "bytecode",
    "engine",
    "fetch",
    "lease",
    "online",
    "prune",
    "push",
    "setup",
    "signed",
    "smoke",
    "store",
    "switch",
    "wheels",
)

if __name__ == "__main__":
    program = sys.argv[1] if len(sys.argv) > 1 else ""
    if program not in PROGRAMS:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(PROGRAMS)} …")
    sys.exit(importlib.import_module(program).main(sys.argv[2:]))
