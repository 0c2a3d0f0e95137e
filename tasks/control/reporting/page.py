"""A rollout as one self-contained HTML page for a change ticket: no script, nothing loaded from anywhere, prints well.

Charts are SVG by matplotlib; their ink is the page's own colour, so that light and dark both work.
"""

from __future__ import annotations

import io
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.control.host_run import HostReport, Phase
from tasks.control.reporting.document import Document
from tasks.control.reporting.table import state_cell
from tasks.control.rules.states import State
from tasks.control.rules.units import size

TEMPLATES = Path(__file__).parents[2] / "templates"
INK = "#010203"  # stands for the text colour of the page, replaced in the SVG
# Okabe and Ito's palette: told apart by colour-blind people, and on white as on black.
COLOURS = {
    "lease": "#999999",
    "fetch": "#56b4e9",
    "prove": "#cc79a7",
    "check": "#56b4e9",
    "stage": "#e69f00",
    "activate": "#009e73",
    "recheck": "#0072b2",
    "withdraw": "#d55e00",
}
BAD = "#d00000"


def html(document: Document, spaces: Collection[str] = ()) -> str:
    """The page of a report. `spaces`: its lines about embedding spaces."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"size": size, "clock": lambda when: time.strftime("%H:%M:%S", time.gmtime(when))}
    phases = [name for name in COLOURS if any(name in last_phases(row) for row in document.hosts.values())]
    return environment.get_template("report.html.j2").render(
        report=document,
        phases=phases,
        last_phases=last_phases,
        state_cell=state_cell,
        waves=waves(document),
        spaces=spaces,
        colours=COLOURS,
        timeline=timeline(document),
        bytes=volume(document),
    )


def last_phases(row: HostReport) -> dict[str, Phase]:
    """{phase: its last record} of one host."""
    return {phase.phase: phase for phase in row.phases}


@dataclass
class Wave:
    """Plan against actual, as host names. start, end: seconds since the epoch, of its switches; None without one."""

    planned: list[str]
    switched: list[str]
    unchanged: list[str]
    held: list[str]
    failed: list[str]
    start: float | None
    end: float | None


def waves(document: Document) -> list[Wave]:
    found = []
    for planned in document.plan:
        rows = {name: document.hosts[name] for name in planned if name in document.hosts}
        by_state = {state.label: [n for n, row in rows.items() if row.state == state.label] for state in State}
        switches = [last_phases(row)["activate"] for row in rows.values() if "activate" in last_phases(row)]
        fine = (State.ACTIVE.label, State.UNCHANGED.label, State.HELD.label)
        found.append(
            Wave(
                planned=planned,
                switched=[name for name in by_state[State.ACTIVE.label] if rows[name].good],
                unchanged=by_state[State.UNCHANGED.label],
                held=by_state[State.HELD.label],
                failed=[
                    n for n, row in rows.items() if row.state not in fine or (n in by_state["active"] and not row.good)
                ],
                start=min((phase.start for phase in switches), default=None),
                end=max((phase.end for phase in switches), default=None),
            )
        )
    return found


def figure(rows: int) -> tuple[Any, Any]:
    # Here, as importing it takes longer than all the rest of a run that changes nothing.
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9, 0.7 + 0.32 * max(rows, 1)), layout="constrained")
    axes = picture.add_subplot()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.tick_params(colors=INK, length=0)
    axes.xaxis.label.set_color(INK)
    axes.invert_yaxis()
    return picture, axes


def svg(picture: Any) -> str:
    import matplotlib

    out = io.StringIO()
    # Text stays text, to be found and copied; no date inside, so that the same report gives the same page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report", "font.family": "sans-serif"}):
        picture.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    words = out.getvalue()
    return words[words.index("<svg") :].replace(INK, "currentColor")


def timeline(document: Document) -> str:
    """A bar a phase, a line a host, in seconds since the run began."""
    order = [name for name, row in document.hosts.items() if row.phases]
    wave = {name: number for number, names in enumerate(document.plan, 1) for name in names}
    order.sort(key=lambda name: (wave.get(name, 0), list(document.hosts).index(name)))
    if not order:
        return ""
    picture, axes = figure(len(order))
    begin = min(phase.start for name in order for phase in document.hosts[name].phases)
    for line, name in enumerate(order):
        for phase in document.hosts[name].phases:
            bar = (phase.start - begin, max(phase.end - phase.start, 0.05))
            edge = {} if phase.ok else {"edgecolor": BAD, "hatch": "///", "linewidth": 1.5}
            axes.broken_barh([bar], (line - 0.35, 0.7), facecolor=COLOURS[phase.phase], **edge)
    axes.set_yticks(range(len(order)), [f"{name} (wave {wave[name]})" if name in wave else name for name in order])
    axes.set_xlabel("seconds since the run began")
    return svg(picture)


def volume(document: Document) -> str:
    """Bytes of the lock on each host: what was there, and what moved."""
    rows = {name: row for name, row in document.hosts.items() if row.total_bytes}
    if not rows:
        return ""
    picture, axes = figure(len(rows))
    for line, row in enumerate(rows.values()):
        moved, total = (row.moved_bytes or 0) / 1e6, (row.total_bytes or 0) / 1e6
        axes.barh(line, total - moved, height=0.7, color=COLOURS["lease"])
        axes.barh(line, moved, left=total - moved, height=0.7, color=COLOURS["stage"])
        axes.text(total, line, f" {size(row.moved_bytes or 0)} moved", va="center", color=INK, fontsize=8)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_xlabel("MB of the release")
    axes.margins(x=0.15)
    return svg(picture)
