"""What happened, told in the end: one table, a row a host, failures last and loud; and the same as JSON and a page.

pyinfra's `host_disconnect` comes from a `finally`: after success, failure, abort, --dry and Ctrl-C. SIGTERM and a second
way out of Ctrl-C (pyinfra exits 0 there) are handled here, so that no way of ending is silent.

reports/last.json, and reports/<time>-<release>.json of a rollout: {"format": 2, "command", "who", "started", "ended",
"seconds", "release", "dry", "verdict": "ok"|"failed", "hosts": {name: {"role", "state", "why", "release" (what serves), "from",
"space", "from_space", "to_space", "wave", "total_bytes", "there_bytes", "moved_bytes", "sent_bytes", "verified", "cosine" (of the
smoke test), "served_cosine" (of the golden queries through the switched service, the lowest), "latency_ms",
"outbound_attempts", "seconds", "switch_seconds", "versions", "phases": [{"phase", "start", "end", "ok"}], …}}, "plan":
[[host]], "costs": {delivery: {"image", "model_change", "code_change"}} or null, "locked" (the release of the lock in git,
of status) or null, "contents": {"models": {repository: commit},
"image", "digest"} or null, "retry"}. Bytes are integers, times UTC ISO (phases: seconds since the epoch).
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pyinfra.api import BaseStateCallback
from pyinfra.api.exceptions import PyinfraError
from rich.text import Text

from tasks.control.reporting import page, table
from tasks.control.reporting.table import Cell, plain

FORMAT = 2
FOLDER = Path("reports")
GOOD = (
    *("active", "ready", "unchanged", "proven", "fit", "would change", "would hash", "locked", "as locked", "same"),
    *("out of service", "in order", "switching", "empty", "intact", "pruned", "unlocked", "would unlock", "written"),
)
# Where a run may be on its way to something else: good news only if it came to its end.
ON_THE_WAY = ("fit", "ready", "would change", "would hash")
FIELDS = (
    *(
        "release",
        "from",
        "space",
        "from_space",
        "to_space",
        "wave",
        "total_bytes",
        "there_bytes",
        "moved_bytes",
        "sent_bytes",
        "verified",
        "since",
    ),
    *("cosine", "served_cosine", "latency_ms", "outbound_attempts", "seconds", "switch_seconds", "versions"),
    *("phases", "container", "kept", "previous", "other_settings", "changes"),
    *("gpu", "disk_free_bytes", "lease", "freed_bytes", "docker_freed_bytes", "hashed_bytes", "repaired"),
    *("loaded_bytes", "bundle_bytes", "bundle_parts", "written_bytes", "blob_count"),
)
# What this run knows about each host: the only memory that gates and report share.
RESULTS: dict[str, dict[str, Any]] = {}
# The phase that each host is in: {name: (phase, since when, {"ok": whether it went well})}, in seconds since the epoch.
BEGUN: dict[str, tuple[str, float, dict[str, bool]]] = {}
# The hosts that the report has called failed.
FAILED: list[str] = []
# Why there is no connection to a host: {name: pyinfra's words}.
UNREACHED: dict[str, str] = {}

Plan = Callable[[], list[list[str]]]
Costs = dict[str, dict[str, int]]


def record(name: str, **values: Any) -> None:
    if "why" in values:
        values["why"] = plain(pasteable(values["why"]).removeprefix(f"{name}: "))
    RESULTS.setdefault(name, {}).update(values)


@contextlib.contextmanager
def phase(name: str, what: str) -> Iterator[dict[str, bool]]:
    """One phase of one host, for the timeline; it yields {"ok": False}, for the phase to say that it went well."""
    said = {"ok": False}
    BEGUN[name] = (what, time.time(), said)
    try:
        yield said
    finally:
        end_phase(name)


def end_phase(name: str) -> None:
    """End the phase that a host is in, if any: in the middle where the run is stopped."""
    if name not in BEGUN:
        return
    what, start, said = BEGUN.pop(name)
    known, end = RESULTS.setdefault(name, {}), time.time()
    known["seconds"] = round((known.get("seconds") or 0) + end - start, 1)
    if what:
        done = {"phase": what, "start": round(start, 2), "end": round(end, 2), **said}
        known.setdefault("phases", []).append(done)


def would_change(name: str) -> bool:
    """Whether a --dry has found something that would be done to the host."""
    return dry() and RESULTS[name].get("state") == "would change"


def evidence(name: str, key: str) -> bool:
    """Whether this very run has seen `key` come true on the host ("fit", "proven", "staged", "confirmed")."""
    return RESULTS.get(name, {}).get(key) is True


# One of our commands as messages name it, where the inventory does not stand before it yet.
OURS = re.compile(r"(?<!\.py )(?<!INVENTORY )(?<![\w/.-])(deploy\.py|tasks/\w+\.py)\b")


class Report(BaseStateCallback):
    """Writes table, JSON and page once, however the run ends."""

    def __init__(
        self,
        state: Any,
        roles: dict[str, str],
        release: str | None,
        columns: Sequence[Cell],
        plan: Plan | None = None,
        costs: Costs | None = None,
        locked: str | None = None,
    ):
        self.state, self.roles, self.release, self.columns, self.plan = state, roles, release, columns, plan
        self.costs, self.locked = costs, locked
        self.rollout = plan is not None
        self.started, self.clock, self.written = time.time(), time.monotonic(), False

    def host_disconnect(self, state: Any, host: Any) -> None:  # type: ignore[override]
        self.write()

    def write(self, why: str = "") -> bool:
        """Write the report once; True when every host is as asked."""
        if self.written:
            return True
        self.written = True
        cut = {name: what for name, (what, *_) in BEGUN.items() if what}
        for name in cut:
            end_phase(name)
        plan = self.plan() if self.plan else []
        wave = {name: number for number, names in enumerate(plan, 1) for name in names}
        rows = {name: self.row(name, why, cut.get(name)) | {"wave": wave.get(name)} for name in self.roles}
        failed = [name for name, row in rows.items() if row["state"] not in GOOD]
        if self.rollout and dry() and failed:  # what is found before anything is changed stops every host
            for row in rows.values():
                if row["state"] == "would change":
                    row |= {"state": "held", "why": f"would be held: {', '.join(failed[:5])} first"}
            failed = [name for name, row in rows.items() if row["state"] not in GOOD]
        good = bool(rows) and not failed
        meant = {RESULTS.get(name, {}).get("target") or row["release"] for name, row in rows.items()} - {None}
        document = {
            "format": FORMAT,
            "command": shlex.join(["pyinfra", *told(sys.argv[1:])]),
            "who": who(),
            "started": stamp(self.started),
            "ended": stamp(time.time()),
            "seconds": round(time.monotonic() - self.clock, 1),
            "release": self.release or (meant.pop() if len(meant) == 1 else None),
            "dry": dry(),
            "verdict": "ok" if good else "failed",
            "hosts": rows,
            "plan": plan,
            "costs": self.costs,
            "locked": self.locked,
            "contents": next((known["contents"] for known in RESULTS.values() if known.get("contents")), None),
            "retry": None if good else again(),
        }
        FAILED.extend(failed)  # a refusal that no operation raised is no success either (config.py)
        try:
            where = save(document, self.rollout and not dry())
        except OSError as error:  # what happened is told all the same
            where = f"NOT WRITTEN: {FOLDER}/: {error}"
        table.show(document, failed, self.columns, where)
        return good

    def row(self, name: str, why: str, cut: str | None) -> dict[str, Any]:
        """`why` the run was stopped, or "", and which phase of this host's that `cut`, if any."""
        host = self.state.inventory.get_host(name)
        known = RESULTS.get(name, {})
        row = {"role": self.roles[name], "state": known.get("state", "incomplete"), "why": known.get("why", "")}
        if row["state"] == "out of service":
            pass
        elif host not in self.state.activated_hosts and not known.get("delegated"):
            silence = f"no ssh connection: {UNREACHED.get(name, 'see the lines above')}"
            row |= {"state": "unreachable", "why": known.get("why") or silence}
        elif host in self.state.failed_hosts and row["state"] in (*GOOD, "incomplete"):
            row |= {"state": "failed", "why": row["why"] or "see the lines above"}
        elif (
            row["state"] == "incomplete"
            or cut is not None
            or (row["state"] in ON_THE_WAY and (why or (self.rollout and not dry())))
        ):
            reason = why or "the run ended before this host was finished"
            row |= {"state": "incomplete", "why": "; ".join(filter(None, [row["why"], reason]))}
        row |= {key: known.get(key) for key in FIELDS}
        if cut in ("activate", "withdraw"):
            goes = "its switch ends by itself there, most likely back in the old release: tasks/status.py"
            row |= {"release": None, "space": "unknown", "container": None, "why": pasteable(f"{row['why']}; {goes}")}
        return row


def told(words: Sequence[str]) -> list[str]:
    """The command line without the passwords that pyinfra would take on it."""
    found, hide = [], False
    for word in words:
        option, equals, _ = word.partition("=")
        secret = re.fullmatch(r"--(ssh-)?(key-)?password", option)
        data = re.match(r"(--data=)?\w*(password|token|secret)\w*=", word, re.IGNORECASE)
        found.append("…" if hide else f"{data[0]}…" if data else f"{option}=…" if secret and equals else word)
        hide = bool(secret) and not equals
    return found


def again() -> str:
    """The command that goes on from here."""
    words = [word for word in told(sys.argv[1:]) if word not in ("-y", "--yes", "--dry")]
    return shlex.join(["pyinfra", "-y", *words])


def dry() -> bool:
    return "--dry" in sys.argv


def commands() -> list[str]:
    """What this run is asked to do, of our own: deploy.py, tasks/….py."""
    words = [os.path.relpath(word) for word in sys.argv[1:] if word.endswith(".py")]
    return [word for word in words if word == "deploy.py" or word.startswith("tasks/")]


def inventory() -> str:
    """The inventory as it was named on the command line, for the commands in messages."""
    named = (word for word in sys.argv[1:] if word.endswith(".py") and os.path.relpath(word) not in commands())
    return next(named, "INVENTORY")


def pasteable(text: str) -> str:
    """What a message says to run next, as it is typed: messages are written where nobody knows the inventory's name."""
    said, next_, mend = text.partition("Next: ")
    return said + next_ + OURS.sub(rf"pyinfra -y {inventory()} \1", mend)


class Unreached(logging.Handler):
    """Keeps what pyinfra says of a host that it cannot connect to: it tells nobody but the log."""

    def emit(self, record: logging.LogRecord) -> None:
        found = re.match(r"\s*\[(\S+)\]\s+(.+)", Text.from_ansi(record.getMessage()).plain)
        if record.levelno >= logging.ERROR and found:
            UNREACHED.setdefault(found[1], found[2])


def who() -> str:
    """The operator, and where from: in reports, leases and the hosts' journals. Behind sudo, the person, not root."""
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a uid without an account, as in some containers
        user = f"uid {os.getuid()}"
    return f"{user}@{os.uname().nodename}"


def stamp(when: float) -> str:
    return time.strftime("%FT%TZ", time.gmtime(when))


def save(document: dict[str, Any], rollout: bool) -> str:
    """reports/last.json, and for a rollout its own JSON and page for the change ticket; -> what to name to people.

    Runs of several operators, or on several hosts, may end in the same second: none overwrites another's ticket.
    """
    FOLDER.mkdir(exist_ok=True)
    words = json.dumps(document, indent=1, sort_keys=True) + "\n"
    files = {"last.json": words}
    if rollout:
        ticket = page.html(document, GOOD, table.about_spaces(document["hosts"]))
        stem = claimed(f"{document['started'].replace(':', '')}-{(document['release'] or 'none')[:12]}")
        files |= {f"{stem}.json": words, f"{stem}.html": ticket}
    for name, content in files.items():
        staged = FOLDER / f".{os.getpid()}.new"
        staged.write_text(content, encoding="utf-8")
        staged.replace(FOLDER / name)
    return f"reports/{list(files)[-1]}"


def claimed(base: str) -> str:
    """`base`, or the first of base-2, base-3, … that no other run's ticket has; from now on this run's."""
    stem, number = base, 1
    while True:
        try:
            (FOLDER / f"{stem}.json").touch(exist_ok=False)
            return stem
        except FileExistsError:
            number += 1
            stem = f"{base}-{number}"


def install(
    state: Any,
    roles: dict[str, str],
    release: str | None,
    columns: Sequence[Cell] = table.DEPLOY,
    plan: Plan | None = None,
    costs: Costs | None = None,
    locked: str | None = None,
) -> None:
    """Once a run (deploy.py is loaded once a host): the callback, and the signals that pyinfra would end silently on.

    A run with a `plan` (waves of host names) is a rollout, and gets a page of its own; `costs`: release.costs;
    `locked`: the release of the lock in git, where the run is not about it but tells it.
    """
    if any(isinstance(handler, Report) for handler in state.callback_handlers):
        return
    try:
        FOLDER.mkdir(exist_ok=True)
        if not os.access(FOLDER, os.W_OK | os.X_OK):
            raise PermissionError(f"{FOLDER} is not writable")
    except OSError as error:
        raise PyinfraError(f"{FOLDER}/ cannot be written, and no run goes without its report: {error}") from None
    report = Report(state, roles, release, columns, plan, costs, locked)
    state.add_callback_handler(report)

    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(number: int, frame: Any) -> None:
        for each in ends:  # whoever presses twice gets the table all the same
            signal.signal(each, signal.SIG_IGN)
        with contextlib.suppress(OSError):  # the terminal may be gone
            report.write(f"the run was stopped by {signal.Signals(number).name}; the next one goes on from here")
            sys.stderr.flush()
        # pyinfra turns Ctrl-C into exit code 0; whoever asked must see that it did not finish.
        os._exit(128 + number)

    for number in ends:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, end)
