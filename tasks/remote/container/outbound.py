"""Counts every attempt of a process to reach a network."""

from __future__ import annotations

import contextlib
import sys
import traceback
from typing import Any

# The kernel's counters of what leaves, by protocol.
COUNTERS = {"Ip": ("OutRequests", "OutNoRoutes"), "Tcp": ("ActiveOpens",), "Udp": ("OutDatagrams",)}


class Outbound:
    """Python's own sockets are counted by an audit hook, and everything else by the kernel's counters."""

    def __init__(self) -> None:
        self.attempts: list[str] = []
        self.before = kernel_counters()
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """Note an event of Python's that leaves the process. A socket of the machine itself has no (host, port)."""
        if event == "socket.getaddrinfo":
            self.attempts.append(f"lookup of {args[0]}:{args[1]} from {caller()}")
        elif event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(args[-1], tuple):
            self.attempts.append(f"{event[7:]} to {args[-1][0]}:{args[-1][1]} from {caller()}")

    def count(self) -> tuple[int, list[str]]:
        """How many attempts there were until now, and a line for each kind."""
        after = kernel_counters()
        moved = {name: after[name] - number for name, number in self.before.items() if after.get(name, 0) > number}
        return max(len(self.attempts), sum(moved.values())), [*self.attempts, *(f"{n}: {c}" for n, c in moved.items())]


def kernel_counters() -> dict[str, int]:
    """{counter: number} of this network namespace. A container without a network is alone in its own."""
    found, lines = {}, []
    with contextlib.suppress(OSError), open("/proc/net/snmp", encoding="ascii") as file:
        lines = file.read().splitlines()
    for names, numbers in zip(lines[::2], lines[1::2]):  # noqa: B905 - Python 3.9
        protocol = names.partition(":")[0]
        row = dict(zip(names.split()[1:], numbers.split()[1:]))  # noqa: B905 - Python 3.9
        found.update({f"{protocol} {n}": int(row[n]) for n in COUNTERS.get(protocol, ()) if n in row})
    return found


def caller() -> str:
    """The file and line that asked the standard library for a network, for the message."""
    for entry in reversed(traceback.extract_stack()[:-2]):
        if not entry.filename.endswith(("socket.py", "outbound.py")):
            return f"{entry.filename}:{entry.lineno}"
    return "?"
