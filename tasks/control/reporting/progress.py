"""How far the pushes are, live: one line a host with bytes, rate and time left; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import gevent
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from tasks.control.rules.units import size

EVERY = 2.0  # seconds between questions to the bastion
LINES = 10.0  # seconds between plain lines of one host


class Pushes:
    """Shows running pushes while at least one host is inside `with pushes`: one poller for the whole fleet.

    ask: returns {host: {"done", "total" (bytes), "seconds"}} of the pushes that run now.
    """

    def __init__(self, ask: Callable[[], dict[str, Any]]):
        self.ask, self.inside, self.poller = ask, 0, None
        self.console = Console(file=sys.stderr)
        self.tasks: dict[str, Any] = {}
        self.last_line: dict[str, float] = {}

    def __enter__(self) -> Pushes:
        self.inside += 1
        if self.inside == 1:
            self.poller = gevent.spawn(self.run)
        return self

    def __exit__(self, *_: object) -> None:
        self.inside -= 1
        if self.inside == 0 and self.poller is not None:
            self.poller.kill()
            self.poller = None

    def run(self) -> None:
        if not self.console.is_terminal:
            return self.loop(self.lines)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, auto_refresh=False) as progress:

            def bars(running: dict[str, Any]) -> None:
                for name, entry in running.items():
                    if name not in self.tasks:
                        self.tasks[name] = progress.add_task(name, total=entry["total"])
                    progress.update(self.tasks[name], completed=entry["done"])
                progress.refresh()

            self.loop(bars)

    def loop(self, show: Callable[[dict[str, Any]], None]) -> None:
        while True:
            gevent.sleep(EVERY)
            show(self.ask())

    def lines(self, running: dict[str, Any]) -> None:
        for name, entry in sorted(running.items()):
            if time.monotonic() - self.last_line.get(name, 0) < LINES:
                continue
            self.last_line[name] = time.monotonic()
            rate = entry["done"] / entry["seconds"] if entry["seconds"] else 0
            far = rate and entry["done"] >= entry["total"] / 100  # before that, only the start is measured
            left = f"{(entry['total'] - entry['done']) / rate:.0f} s left" if far else "time left unknown"
            done = f"{size(entry['done'])} of {size(entry['total'])}"
            self.console.print(f"    [{name}] push: {done}, {size(rate)}/s, {left}", markup=False, highlight=False)
