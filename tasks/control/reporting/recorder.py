"""Writes the report once, however the run ends: the table, reports/last.json, and for a rollout a page for the ticket.

pyinfra's `host_disconnect` comes from a `finally`: after success, failure, abort, --dry and Ctrl-C. Signals are handled here,
so that no way of ending is silent.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyinfra.api import BaseStateCallback
from pyinfra.api.exceptions import PyinfraError
from rich.text import Text

from tasks.control.command_line import shown_hosts
from tasks.control.host_run import HostReport, HostRun
from tasks.control.reporting import page, table
from tasks.control.reporting.clock import stamp
from tasks.control.reporting.document import FORMAT, Document
from tasks.control.reporting.table import Column
from tasks.control.rules.states import State
from tasks.control.run import Run
from tasks.control.version import version
from tasks.control.who import who

FOLDER = Path("reports")
CUT_SWITCH = "its switch ends by itself there, most likely back in the old release: tasks/status.py"


class Unreached(logging.Handler):
    """Keeps what pyinfra says of a host that it cannot connect to: {host: its words}. It tells nobody but the log.

    command_began: pyinfra has come as far as the command, so the run speaks for itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hosts: dict[str, str] = {}
        self.command_began = False

    def emit(self, record: logging.LogRecord) -> None:
        found = re.match(r"\s*\[(\S+)\]\s+(.+)", Text.from_ansi(record.getMessage()).plain)
        if record.levelno >= logging.ERROR and found:
            self.hosts.setdefault(found[1], found[2])


def unreached() -> Unreached:
    """The handler that config.py has given pyinfra's logger."""
    handlers = logging.getLogger("pyinfra").handlers
    return next((each for each in handlers if isinstance(each, Unreached)), Unreached())


class Recorder(BaseStateCallback):
    """Of one run. It is also how that run is found again, by pyinfra's own list of callbacks.

    columns: of its table.
    """

    def __init__(self, run: Run, state: Any, columns: Sequence[Column]):
        self.run, self.state, self.columns = run, state, columns
        self.started, self.clock, self.written = time.time(), time.monotonic(), False
        self.failed: list[str] = []

    def host_disconnect(self, state: Any, host: Any) -> None:  # type: ignore[override]
        self.write()

    def write(self, stopped: str = "") -> None:
        """Write the report once. `stopped`: why the run was stopped, or ""."""
        if self.written:
            return
        self.written = True
        document = self.document(stopped)
        self.failed = [name for name, row in document.hosts.items() if not row.good]
        try:
            where = save(document, self.run.is_rollout and not document.dry)
        except OSError as error:  # what happened is told all the same
            where = f"NOT WRITTEN: {FOLDER}/: {error}"
        table.show(document, self.columns, where)

    def document(self, stopped: str) -> Document:
        command_line, plan = self.run.command_line, self.run.waves
        waves = {name: number for number, names in enumerate(plan, 1) for name in names}
        rows = {name: replace(self.row(name, stopped), wave=waves.get(name)) for name in self.run.reported}
        if self.run.is_rollout and command_line.dry:
            hold_all(rows)
        good = bool(rows) and all(row.good for row in rows.values())
        lock = self.run.lock
        meant = {self.run.hosts[name].goes_to or row.release for name, row in rows.items()} - {None}
        made_of = [self.run.hosts[name].made_of for name in rows]
        return Document(
            format=FORMAT,
            version=version(),
            command=command_line.text(),
            who=who(),
            started=stamp(self.started),
            ended=stamp(time.time()),
            seconds=round(time.monotonic() - self.clock, 1),
            release=lock.id if lock else meant.pop() if len(meant) == 1 else None,
            dry=command_line.dry,
            verdict="ok" if good else "failed",
            hosts=rows,
            plan=plan,
            costs=lock.costs() if lock and self.run.is_rollout else None,
            lock_in_git=self.run.lock_in_git,
            made_of=next((each for each in made_of if each), None),
            retry=None if good else command_line.again(),
        )

    def row(self, name: str, stopped: str) -> HostReport:
        """The row of one host, as it stands when the run ends."""
        me = self.run.hosts[name]
        cut = me.end_phase()  # "" where it was in none
        state, why = self.final_state(me, stopped, cut)
        if cut in ("activate", "withdraw"):
            me.claim_nothing()
            why = me.command_line.complete(f"{why}; {CUT_SWITCH}")
        good = state.good and not (state is State.ACTIVE and me.not_readmitted)
        return replace(
            me.report,
            role=me.role.value,
            state=state.label,
            good=good,
            not_readmitted=me.not_readmitted,
            why=why,
        )

    def final_state(self, me: HostRun, stopped: str, cut: str) -> tuple[State, str]:
        """The state and the reason of a host: what its operations recorded, unless pyinfra or the run's end says more."""
        state, why = me.state, me.why
        target = me.target
        if state is State.OUT_OF_SERVICE:
            return state, why
        if target not in self.state.activated_hosts and me.in_limit:
            silence = f"no ssh connection: {unreached().hosts.get(me.name, 'see the lines above')}"
            return State.UNREACHABLE, why or silence
        if target in self.state.failed_hosts and (state.good or state is State.INCOMPLETE):
            return State.FAILED, why or "see the lines above"
        unfinished = state.on_the_way and (bool(stopped) or (self.run.is_rollout and not self.run.command_line.dry))
        if state is State.INCOMPLETE or cut or unfinished:
            reason = stopped or "the run ended before this host was finished"
            return State.INCOMPLETE, "; ".join(filter(None, [why, reason]))
        return state, why


def hold_all(rows: dict[str, HostReport]) -> None:
    """In a dry run of a rollout: one bad host would hold all that would change."""
    failed = [name for name, row in rows.items() if not row.good]
    for name, row in rows.items():
        if failed and row.state == State.WOULD_CHANGE.label:
            why = f"would be held: {shown_hosts(failed)} first"
            rows[name] = replace(row, state=State.HELD.label, good=False, why=why)


def save(document: Document, rollout: bool) -> str:
    """Write reports/last.json, and for a rollout its own JSON and page; return what to name to people.

    Runs of several operators, or on several hosts, may end in the same second. None overwrites another's ticket.
    """
    FOLDER.mkdir(exist_ok=True)
    words = json.dumps(document.as_json(), indent=1, sort_keys=True) + "\n"
    files = {"last.json": words}
    if rollout:
        ticket = page.html(document, table.about_spaces(document.hosts))
        stem = claim(f"{document.started.replace(':', '')}-{(document.release or 'none')[:12]}")
        files |= {f"{stem}.json": words, f"{stem}.html": ticket}
    for name, content in files.items():
        staged = FOLDER / f".{os.getpid()}.new"
        staged.write_text(content, encoding="utf-8")
        staged.replace(FOLDER / name)
    return f"reports/{list(files)[-1]}"


def claim(base: str) -> str:
    """`base`, or the first of base-2, base-3, … that no other run's ticket has. From now on it is this run's."""
    stem, number = base, 1
    while True:
        try:
            (FOLDER / f"{stem}.json").touch(exist_ok=False)
            return stem
        except FileExistsError:
            number += 1
            stem = f"{base}-{number}"


def check_folder() -> None:
    """Before any host is touched: no run goes without its report."""
    try:
        FOLDER.mkdir(exist_ok=True)
        if not os.access(FOLDER, os.W_OK | os.X_OK):
            raise PermissionError(f"{FOLDER} is not writable")
    except OSError as error:
        raise PyinfraError(f"{FOLDER}/ cannot be written, and no run goes without its report: {error}") from None


def handle_signals(recorder: Recorder) -> None:
    """Ctrl-C, SIGTERM and a closed terminal end with the report, and with exit code 128 + the signal's number."""
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(number: int, frame: Any) -> None:
        for each in ends:  # whoever presses twice gets the table all the same
            signal.signal(each, signal.SIG_IGN)
        with contextlib.suppress(OSError):  # the terminal may be gone
            recorder.write(f"the run was stopped by {signal.Signals(number).name}; the next one goes on from here")
            sys.stderr.flush()
        # pyinfra turns Ctrl-C into exit code 0. Whoever asked must see that it did not finish.
        os._exit(128 + number)

    for number in ends:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, end)
