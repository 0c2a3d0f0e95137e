"""What a run prints in the end: one table, a row a host, failures last and loud; then the lines that are about many hosts."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tasks.control.command_line import printable, shown_hosts
from tasks.control.host_run import HostReport
from tasks.control.reporting.document import Document
from tasks.control.rules.states import NOT_READMITTED, State
from tasks.control.rules.units import size

Hosts = Mapping[str, HostReport]


@dataclass(frozen=True)
class Column:
    """A column: its title, its side, and its cell for a host's row. `keep`: it stays readable on a narrow terminal."""

    title: str
    justify: Literal["left", "right"]
    cell: Callable[[HostReport], str]
    keep: bool = False


def text(title: str, field: str, length: int | None = None, keep: bool = False) -> Column:
    return Column(title, "left", lambda row: printable(str(getattr(row, field) or "-"))[:length], keep)


def count(title: str, field: str, show: Callable[[float], str] = size) -> Column:
    def cell(row: HostReport) -> str:
        value = getattr(row, field)
        return "-" if value is None else show(value)

    return Column(title, "right", cell)


def state_cell(row: HostReport) -> str:
    return f"{row.state}, {NOT_READMITTED}" if row.not_readmitted else row.state


STATE = Column("state", "left", state_cell, keep=True)
COSINE = count("cosine", "cosine", lambda value: f"{value:.5f}")
# The title names the release that the run is about, as do all columns but `serves`.
DEPLOY = (
    STATE,
    text("serves", "release", 12, keep=True),
    count("moved", "moved_bytes"),
    count("of", "total_bytes"),
    text("verified", "verified"),
    COSINE,
    count("latency", "latency_ms", lambda value: f"{value:.0f} ms"),
    count("outbound", "outbound_attempts", str),
)
STATUS = (
    STATE,
    text("release", "release", 12, keep=True),
    text("since", "since"),
    text("verified", "verified"),
    text("space", "space"),
    text("container", "container"),
    COSINE,
    text("gpu", "gpu"),
    count("free", "disk_free_bytes"),
)
VERIFY = (STATE, text("release", "release", 12, keep=True), count("hashed", "hashed_bytes"))
PRUNE = (STATE, count("freed in the store", "freed_bytes"), count("freed in Docker", "docker_freed_bytes"))
BUNDLE = (
    STATE,
    text("release", "release", 12, keep=True),
    count("bundle", "bundle_bytes"),
    count("parts", "bundle_parts", str),
    count("written", "written_bytes"),
)
CONTENTS = (STATE, count("blobs", "blob_count", str), count("hashed", "hashed_bytes"))


def show(document: Document, columns: Sequence[Column], where: str = "") -> None:
    """Print the table, the reasons, the lines about many hosts, and where the report is."""
    console = Console(file=sys.stderr, width=None if sys.stderr.isatty() else 150, highlight=False, emoji=False)
    hosts = document.hosts
    order = sorted(hosts, key=lambda name: (not hosts[name].good, hosts[name].role != "bastion"))
    title = f"release {printable(document.release[:12])}" if document.release else None
    table = Table(title=title, title_justify="left")
    table.add_column("host", min_width=max(map(len, hosts), default=0))
    for column in columns:
        widest = max((len(column.cell(row)) for row in hosts.values()), default=0)
        table.add_column(column.title, justify=column.justify, min_width=widest if column.keep else None)
    for name in order:
        cells = (escape(column.cell(hosts[name])) for column in columns)
        table.add_row(name, *cells, style=None if hosts[name].good else "bold red")
    console.print()
    console.print(table)
    for names, why, good in reasons(hosts, order):
        line = escape(f"{shown_hosts(names)}: {why}")
        console.print(line if good else f"[bold red]{line}[/]", soft_wrap=True)
    for line in about(document, columns):
        console.print(escape(line), soft_wrap=True)
    fine = sum(row.good for row in hosts.values())
    console.print(f"{fine} of {len(hosts)} hosts ok, in {document.seconds} s; {where}")
    if document.retry:
        console.print(f"Run again, once fixed: {escape(document.retry)}", soft_wrap=True)


def reasons(hosts: Hosts, order: Sequence[str]) -> list[tuple[list[str], str, bool]]:
    """[(hosts, why, good)]: a reason that many hosts have is told once, good ones first."""
    found: dict[tuple[str, bool], list[str]] = {}
    for name in order:
        row = hosts[name]
        if row.why or not row.good:
            found.setdefault((row.why, row.good), []).append(name)
    return [(names, why, good) for (why, good), names in found.items()]


def about(document: Document, columns: Sequence[Column]) -> list[str]:
    """The lines that are about many hosts."""
    hosts = document.hosts
    lines = about_waves(document.plan) if document.dry else []
    lines += about_spaces(hosts)
    if columns is STATUS:
        lines += about_lock(document.lock_in_git, hosts) + about_releases(hosts) + about_kept(hosts)
        lines += about_leases(hosts)
    return lines


def about_waves(plan: Sequence[Sequence[str]]) -> list[str]:
    """A line for each wave, in the order in which a rollout would switch them."""
    return [f"wave {number}: {', '.join(names)}" for number, names in enumerate(plan, 1)]


def about_spaces(hosts: Hosts) -> list[str]:
    """A line for each change of embedding space, and how much of it was done: vectors of two spaces do not compare."""
    moves = Counter((row.from_space, row.to_space) for row in hosts.values() if row.to_space)
    done = Counter((row.from_space, row.space) for row in hosts.values())
    lines = []
    for (before, after), number in sorted(moves.items(), key=str):
        if before not in (None, "none", after):
            moved = f"{number} host{'s' * (number != 1)}, {done[before, after]} moved"
            lines.append(
                f"embedding space: {before} -> {after} on {moved}; an index made in one does not answer for the other"
            )
    return lines


def _in_service(hosts: Hosts) -> list[HostReport]:
    return [row for row in hosts.values() if row.state != State.OUT_OF_SERVICE.label]


def about_releases(hosts: Hosts) -> list[str]:
    """A line where the hosts do not all serve the same release: each may be in sync, and the fleet half-way."""
    silent = (State.UNREACHABLE.label, State.UNREADABLE.label)
    served = [row.release or ("unknown" if row.state in silent else "none") for row in _in_service(hosts)]
    serving = Counter(name[:12] for name in served)
    words = ", ".join(f"{name} on {number}" for name, number in serving.most_common())
    return [f"not one release: {words}"] if len(serving) > 1 else []


def about_lock(locked: str | None, hosts: Hosts) -> list[str]:
    """Lines where hosts serve something else than git says: another release, or other settings."""
    there = _in_service(hosts)
    serve = sum(row.release == locked for row in there)
    lines = []
    if locked and serve < len(there):
        lines.append(f"the lock in git: release {locked[:12]}, on {serve} of {len(there)}")
    if odd := sorted(name for name, row in hosts.items() if row.other_settings):
        lines.append(f"other settings than in git: {', '.join(odd)}")
    return lines


def about_kept(hosts: Hosts) -> list[str]:
    """A line for each release that some host has and does not serve: where tasks/rollback.py could go."""
    kept: dict[str, list[str]] = {}
    for name, row in sorted(hosts.items()):
        for release in row.kept or []:
            kept.setdefault(release, []).append(f"{name} (its previous)" if release == row.previous else name)
    return [f"also there: release {release[:12]} on {', '.join(names)}" for release, names in sorted(kept.items())]


def about_leases(hosts: Hosts) -> list[str]:
    """A line for each lease: one rollout holds many hosts, each since its own second."""
    held: dict[str, list[tuple[str, str]]] = {}
    for name, row in sorted(hosts.items()):
        if row.lease:
            held.setdefault(row.lease.split()[0], []).append((name, row.lease))
    return [f"held by lease {first[0][1]}: {', '.join(name for name, _ in first)}" for first in held.values()]
