"""What a run prints in the end: one table, a row a host, failures last and loud; then the lines that are about many hosts.

A column is (title, justify, cell of a row); rows are those of a report (report.py has their fields).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tasks.control.preflight import size

Cell = tuple[str, str, Callable[[dict[str, Any]], str]]


def plain(text: str) -> str:
    """Without what a terminal would obey: the words may be a host's, or whoever's wrote there."""
    return "".join(c if c.isprintable() else "?" for c in text)


def text(title: str, key: str, length: int | None = None) -> Cell:
    return title, "left", lambda row: plain(str(row[key] or "-"))[:length]


def count(title: str, key: str) -> Cell:
    return title, "right", lambda row: "-" if row[key] is None else size(row[key])


COSINE: Cell = ("cosine", "right", lambda row: "-" if row["cosine"] is None else f"{row['cosine']:.5f}")
# The title names the release that the run is about, as do all columns but `serves`.
DEPLOY: Sequence[Cell] = (
    text("state", "state"),
    text("serves", "release", 12),
    count("moved", "moved_bytes"),
    count("of", "total_bytes"),
    text("verified", "verified"),
    COSINE,
    ("latency", "right", lambda row: "-" if row["latency_ms"] is None else f"{row['latency_ms']:.0f} ms"),
    ("outbound", "right", lambda row: "-" if row["outbound_attempts"] is None else str(row["outbound_attempts"])),
)
STATUS: Sequence[Cell] = (
    text("state", "state"),
    text("release", "release", 12),
    text("since", "since"),
    text("verified", "verified"),
    text("space", "space"),
    text("container", "container"),
    COSINE,
    text("gpu", "gpu"),
    count("free", "disk_free_bytes"),
)
VERIFY: Sequence[Cell] = (text("state", "state"), text("release", "release", 12), count("hashed", "hashed_bytes"))
PRUNE: Sequence[Cell] = (
    text("state", "state"),
    count("freed in the store", "freed_bytes"),
    count("freed in Docker", "docker_freed_bytes"),
)
BUNDLE: Sequence[Cell] = (
    text("state", "state"),
    text("release", "release", 12),
    count("bundle", "bundle_bytes"),
    ("parts", "right", lambda row: "-" if row["bundle_parts"] is None else str(row["bundle_parts"])),
    count("written", "written_bytes"),
)
HAVE: Sequence[Cell] = (
    text("state", "state"),
    ("blobs", "right", lambda row: "-" if row["blob_count"] is None else str(row["blob_count"])),
    count("hashed", "hashed_bytes"),
)
# On a narrow terminal these stay readable: who, and how it stands.
KEPT = ("state", "release", "serves")


def show(document: dict[str, Any], failed: list[str], columns: Sequence[Cell] = DEPLOY, where: str = "") -> None:
    console = Console(file=sys.stderr, width=None if sys.stderr.isatty() else 150, highlight=False)
    title = f"release {plain(document['release'][:12])}" if document["release"] else None
    table = Table(title=title, title_justify="left")
    table.add_column("host", min_width=max(map(len, document["hosts"]), default=0))
    for title, justify, cell in columns:
        least = max((len(cell(row)) for row in document["hosts"].values()), default=0) if title in KEPT else None
        table.add_column(title, justify=justify, min_width=least)  # type: ignore[arg-type]
    ordered = sorted(document["hosts"].items(), key=lambda item: (item[0] in failed, item[1]["role"] != "bastion"))
    for name, row in ordered:
        style = "bold red" if name in failed else None
        table.add_row(name, *(escape(cell(row)) for _, _, cell in columns), style=style)
    console.print()
    console.print(table)
    for name, row in ordered:
        if row["why"] and name not in failed:
            console.print(f"{escape(name)}: {escape(row['why'])}", soft_wrap=True)
    for name in failed:
        console.print(f"[bold red]{escape(name)}: {escape(document['hosts'][name]['why'])}[/]", soft_wrap=True)
    hosts = document["hosts"]
    more = []
    if columns is STATUS:
        more = about_lock(document["locked"], hosts) + about_releases(hosts) + about_kept(hosts) + about_leases(hosts)
    waves = about_waves(document["plan"]) if document["dry"] else []
    for line in waves + about_spaces(hosts) + more:
        console.print(escape(line), soft_wrap=True)
    good = len(document["hosts"]) - len(failed)
    console.print(f"{good} of {len(document['hosts'])} as asked, in {document['seconds']} s; {where}")
    if document["retry"]:
        console.print(f"Again, when mended: {escape(document['retry'])}", soft_wrap=True)


def about_waves(plan: list[list[str]]) -> list[str]:
    """A line for each wave, in the order in which a rollout would switch them."""
    return [f"wave {number}: {', '.join(names)}" for number, names in enumerate(plan, 1)]


def about_spaces(hosts: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each way that embedding spaces change, and how much of it was done: vectors of two do not compare."""
    moves = Counter((row["from_space"], row["to_space"]) for row in hosts.values() if row["to_space"])
    done = Counter((row["from_space"], row["space"]) for row in hosts.values())
    return [
        f"embedding space: {move[0]} -> {move[1]} on {count} host{'s' * (count != 1)}, {done[move]} moved; an index made in one "
        "does not answer for the other"
        for move, count in sorted(moves.items())
        if move[0] not in (None, "none", move[1])
    ]


def about_releases(hosts: dict[str, dict[str, Any]]) -> list[str]:
    """A line where the hosts do not all serve the same: each may be in order, and the fleet half-way."""
    silent = {"unreachable": "unknown", "unreadable": "unknown"}
    there = [row for row in hosts.values() if row["state"] != "out of service"]
    serving = Counter((row["release"] or silent.get(row["state"], "none"))[:12] for row in there)
    words = ", ".join(f"{name} on {count}" for name, count in serving.most_common())
    return [f"not one release: {words}"] if len(serving) > 1 else []


def about_lock(locked: str | None, hosts: dict[str, dict[str, Any]]) -> list[str]:
    """Lines where hosts serve something else than what git says, which a deploy would bring: the release, or its settings."""
    there = [row for row in hosts.values() if row["state"] != "out of service"]
    serve = sum(row["release"] == locked for row in there)
    behind = (
        [f"the lock in git: release {locked[:12]}, on {serve} of {len(there)}"] if locked and serve < len(there) else []
    )
    odd = sorted(name for name, row in hosts.items() if row["other_settings"])
    return behind + ([f"other settings than in git: {', '.join(odd)}"] if odd else [])


def about_kept(hosts: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each release that some host has and does not serve: where tasks/rollback.py could take it."""
    kept: dict[str, list[str]] = {}
    for name, row in sorted(hosts.items()):
        for release in row["kept"] or []:
            word = f"{name} (its previous)" if release == row["previous"] else name
            kept.setdefault(release, []).append(word)
    return [f"also there: release {release[:12]} on {', '.join(names)}" for release, names in sorted(kept.items())]


def about_leases(hosts: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each lease, as one rollout holds many hosts, each since its own second."""
    held: dict[str, list[tuple[str, str]]] = {}
    for name, row in sorted(hosts.items()):
        if row["lease"]:
            held.setdefault(row["lease"].split()[0], []).append((name, row["lease"]))
    return [f"held by lease {hosts[0][1]}: {', '.join(name for name, _ in hosts)}" for hosts in held.values()]
