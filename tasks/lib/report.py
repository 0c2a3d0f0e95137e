"""What happened, told in the end: one table, a row a host, failures last and loud; and reports/last.json.

pyinfra's `host_disconnect` comes from a `finally`: after success, failure, abort, --dry and Ctrl-C. SIGTERM and a second
way out of Ctrl-C (pyinfra exits 0 there) are handled here, so that no way of ending is silent.

reports/last.json: {"format": 1, "command", "started", "seconds", "release", "dry", "verdict": "ok"|"failed",
"hosts": {name: {"role", "state", "why", "release", "total_bytes", "there_bytes", "moved_bytes", "sent_bytes",
"verified", "cosine", "latency_ms", "outbound_attempts", "seconds"}}, "retry"}. Bytes are integers, times UTC ISO.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

from pyinfra.api import BaseStateCallback
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tasks.lib.fitness import size

FORMAT = 1
GOOD = ("active", "ready", "unchanged", "proven", "fit", "would change", "locked", "as locked", "same")
# What this run knows about each host: the only memory that gates and report share.
RESULTS: dict[str, dict[str, Any]] = {}


def record(name: str, **values: Any) -> None:
    RESULTS.setdefault(name, {}).update(values)


def evidence(name: str, key: str) -> bool:
    """Whether this very run has seen `key` come true on the host ("fit", "proven", "staged", "confirmed")."""
    return RESULTS.get(name, {}).get(key) is True


class Report(BaseStateCallback):
    """Writes table and JSON once, however the run ends."""

    def __init__(self, state: Any, roles: dict[str, str], release: str | None):
        self.state, self.roles, self.release = state, roles, release
        self.started, self.clock, self.written = time.time(), time.monotonic(), False

    def host_disconnect(self, state: Any, host: Any) -> None:  # type: ignore[override]
        self.write()

    def write(self, why: str = "") -> bool:
        """Write the report once; True when every host is as asked."""
        if self.written:
            return True
        self.written = True
        dry = "--dry" in sys.argv
        rows = {name: self.row(name, why) for name in self.roles}
        good = all(row["state"] in GOOD for row in rows.values())
        failed = [name for name, row in rows.items() if row["state"] not in GOOD]
        document = {
            "format": FORMAT,
            "command": shlex.join(["pyinfra", *sys.argv[1:]]),
            "started": time.strftime("%FT%TZ", time.gmtime(self.started)),
            "seconds": round(time.monotonic() - self.clock, 1),
            "release": self.release,
            "dry": dry,
            "verdict": "ok" if good else "failed",
            "hosts": rows,
            "retry": None if good else shlex.join(["pyinfra", *[a for a in sys.argv[1:] if a != "--dry"]]),
        }
        save(document)
        show(document, failed)
        return good

    def row(self, name: str, why: str) -> dict[str, Any]:
        host = self.state.inventory.get_host(name)
        known = RESULTS.get(name, {})
        row = {"role": self.roles[name], "state": known.get("state", "incomplete"), "why": known.get("why", "")}
        if host not in self.state.activated_hosts and not known.get("delegated"):
            row |= {"state": "unreachable", "why": known.get("why") or "no ssh connection; see the lines above"}
        elif host in self.state.failed_hosts and row["state"] in (*GOOD, "incomplete"):
            row |= {"state": "failed", "why": row["why"] or "see the lines above"}
        elif row["state"] == "incomplete":
            row["why"] = row["why"] or why or "the run ended before this host was finished"
        fields = ("release", "total_bytes", "there_bytes", "moved_bytes", "sent_bytes", "verified", "cosine")
        return row | {key: known.get(key) for key in (*fields, "latency_ms", "outbound_attempts", "seconds")}


def save(document: dict[str, Any]) -> None:
    folder = Path("reports")
    folder.mkdir(exist_ok=True)
    staged = folder / ".last.json.new"
    staged.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    staged.replace(folder / "last.json")


def show(document: dict[str, Any], failed: list[str]) -> None:
    console = Console(file=sys.stderr, width=None if sys.stderr.isatty() else 140, highlight=False)
    table = Table(title=f"release {(document['release'] or 'none')[:12]}", title_justify="left")
    for column in ("host", "state", "release", "moved", "of", "verified", "cosine", "latency", "outbound"):
        table.add_column(
            column, justify="right" if column in ("moved", "of", "cosine", "latency", "outbound") else "left"
        )
    ordered = sorted(document["hosts"].items(), key=lambda item: (item[0] in failed, item[1]["role"] != "bastion"))
    for name, row in ordered:
        style = "bold red" if name in failed else None
        cosine = row["cosine"]
        table.add_row(
            name,
            row["state"],
            (row["release"] or "-")[:12],
            "-" if row["moved_bytes"] is None else size(row["moved_bytes"]),
            "-" if row["total_bytes"] is None else size(row["total_bytes"]),
            row["verified"] or "-",
            "-" if cosine is None else f"{cosine:.5f}",
            "-" if row["latency_ms"] is None else f"{row['latency_ms']:.0f} ms",
            "-" if row["outbound_attempts"] is None else str(row["outbound_attempts"]),
            style=style,
        )
    console.print()
    console.print(table)
    for name in failed:
        console.print(f"[bold red]{escape(name)}: {escape(document['hosts'][name]['why'])}[/]", soft_wrap=True)
    good = len(document["hosts"]) - len(failed)
    console.print(f"{good} of {len(document['hosts'])} as asked, in {document['seconds']} s; reports/last.json")
    if document["retry"]:
        console.print(f"Again, when mended: {escape(document['retry'])}", soft_wrap=True)


def install(state: Any, roles: dict[str, str], release: str | None) -> None:
    """Once a run (deploy.py is loaded once a host): the callback, and the signals that pyinfra would end silently on."""
    if any(isinstance(handler, Report) for handler in state.callback_handlers):
        return
    report = Report(state, roles, release)
    state.add_callback_handler(report)

    def end(number: int, frame: Any) -> None:
        report.write(f"the run was stopped by {signal.Signals(number).name}; the next one goes on from here")
        sys.stderr.flush()
        # pyinfra turns Ctrl-C into exit code 0; whoever asked must see that it did not finish.
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
