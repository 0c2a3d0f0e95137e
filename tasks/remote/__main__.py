"""The tool on a remote machine is one zip of these programs and tasks/shared: `python3 tool.pyz PROGRAM ARGS…`."""

import importlib
import sys

PROGRAMS = {
    "bundle": "bastion.bundle",
    "export": "bastion.export",
    "fetch": "bastion.fetch",
    "push": "bastion.push",
    "wheels": "bastion.wheels",
    "online": "container.online",
    "smoke": "container.smoke",
    "bytecode": "host.bytecode",
    "engine": "host.engine",
    "lease": "host.lease",
    "prune": "host.prune",
    "setup": "host.setup",
    "signed": "host.signed",
    "store": "host.store",
    "switch": "host.switch.program",
}

if __name__ == "__main__":
    program = sys.argv[1] if len(sys.argv) > 1 else ""
    if program not in PROGRAMS:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(sorted(PROGRAMS))} …")
    sys.exit(importlib.import_module(f"tasks.remote.{PROGRAMS[program]}").main(sys.argv[2:]))
