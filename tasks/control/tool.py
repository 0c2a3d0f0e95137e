"""The tool on the other machines: one zip of the remote programs. How it gets there, how it is called, what it answers.

Nothing here raises out of an operation: bad news about one host fails that host alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gevent.lock import BoundedSemaphore
from pyinfra import logger
from pyinfra.api import FunctionCommand, QuoteString, StringCommand

from tasks.control.host_run import HostRun
from tasks.control.rules.states import State
from tasks.control.ssh import send_file
from tasks.shared.answers import last_json_object
from tasks.shared.errors import Refused, describe
from tasks.shared.lock import Lock

if TYPE_CHECKING:
    from tasks.control.run import Run

TASKS = Path(__file__).parents[1]
REPOSITORY = TASKS.parent


class Tool:
    """The zip of remote programs. The same sources give the same bytes, so its name is its content."""

    def __init__(self) -> None:
        self.bringing = BoundedSemaphore(1)

    @cached_property
    def data(self) -> bytes:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in sorted(sources().items()):
                info = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
                info.external_attr = 0o644 << 16
                archive.writestr(info, text, zipfile.ZIP_DEFLATED)
        return packed.getvalue()

    @cached_property
    def name(self) -> str:
        return f"tool-{hashlib.sha256(self.data).hexdigest()[:12]}.pyz"

    def path(self, store: str) -> str:
        """Where it lies on a machine with this store."""
        return f"{store}/tool/{self.name}"


def sources() -> dict[str, bytes]:
    """{path in the zip: content}: the remote programs and what they share with us, under the same import names as here.

    The entry point stands at the top, where Python looks for it.
    """
    files = [TASKS / "__init__.py", *(TASKS / "shared").rglob("*.py"), *(TASKS / "remote").rglob("*.py")]
    found = {str(path.relative_to(REPOSITORY)): path.read_bytes() for path in files}
    return {**found, "__main__.py": found.pop("tasks/remote/__main__.py")}


def options(**values: Any) -> list[str]:
    """Keywords as the options of a command: True is a flag, None and False are left out, a list repeats its option."""
    words: list[str] = []
    for key, value in values.items():
        name = f"--{key.rstrip('_').replace('_', '-')}"
        for each in value if isinstance(value, list | tuple) else [value]:
            if each is True:
                words.append(name)
            elif each is not None and each is not False:
                words += [name, str(each)]
    return words


def command(run: Run, me: HostRun, *words: str, python: str = "python3") -> StringCommand:
    """The shell command that runs a program of the tool on a host."""
    quoted = [QuoteString(word) for word in words]
    return StringCommand(QuoteString(python), QuoteString(run.tool.path(me.settings.model_store)), *quoted)


def call(
    run: Run,
    me: HostRun,
    *program: str,
    document: Any = None,
    deadline: int = 600,
    python: str = "python3",
    **more: Any,
) -> dict[str, Any]:
    """Run a program of the tool on a host's store; return its JSON answer. It never raises.

    document: what the program reads on standard input, as JSON or as a text. deadline: seconds, there and here. more: its
    options. Where it gave no answer: {"ok": False, "answered": False, "error": …}.
    """
    words = [*program, *options(store=me.settings.model_store, **more)]
    # coreutils' timeout as well: pyinfra's own leaves the remote process running.
    bounded = StringCommand(f"timeout -k 10 {deadline + 30}", command(run, me, *words, python=python))
    stdin = document if isinstance(document, str | None) else json.dumps(document)
    ok, output = run.sessions.run(me.target, bounded, stdin, deadline + 60)
    answer = last_json_object(output.stdout_lines, "ok")
    if answer is None:
        what = f"`{' '.join(program)}` gave no answer"
        found = "; ".join(output.stderr_lines[-3:]) or "no output; did the connection break?"
        fix = "the same again, which ends what was begun"
        return {"ok": False, "answered": False, "error": Refused(me.name, what, found=found, next=fix).error}
    if answer.get("ok") and not ok:
        error = Refused(me.name, f"`{program[0]}` failed after its answer").error
        return {"ok": False, "answered": False, "error": error}
    return answer


def expect(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The answer of a program. Raises Refused with its reason where it says no."""
    if not answer.get("ok"):
        error = answer.get("error") or {}
        raise Refused(*(str(error.get(key, "")) for key in ("where", "what", "expected", "found", "next")))
    return answer


def put_file(run: Run, me: HostRun, path: str, data: bytes) -> bool:
    """Write a small file on a host: beside its place, checked by digest, renamed. Return whether it worked."""
    digest = hashlib.sha256(data).hexdigest()
    staged = f"{path}.{os.getpid()}.put"
    if not send_file(me.target, data, staged):
        return False
    check = StringCommand("echo", QuoteString(f"{digest}  {staged}"), "| sha256sum -c --quiet && chmod 0644 --")
    move = StringCommand(check, QuoteString(staged), "&& mv -T --", QuoteString(staged), QuoteString(path))
    return run.sessions.run(me.target, move, None, 60)[0]


def ensure_tool(run: Run, me: HostRun) -> None:
    """Bring the tool to a host, once a run. Hosts that share a bastion wait for the one that brings it."""
    if me.in_limit and me.facts is None:
        raise Refused(me.name, "could not be inspected", next="tasks/preflight.py")
    with run.tool.bringing:
        if run.tool.name in me.tools:
            return
        path = run.tool.path(me.settings.model_store)
        arrived = f"{path}.{os.getpid()}"
        folder = StringCommand("umask 022; mkdir -p --", QuoteString(os.path.dirname(path)))
        place = StringCommand("python3", QuoteString(arrived), "bytecode --to", QuoteString(path))
        made = run.sessions.run(me.target, folder, None, 60)[0] and put_file(run, me, arrived, run.tool.data)
        if not made or not run.sessions.run(me.target, place, None, 120)[0]:
            raise Refused(me.name, "cannot write the tool", next=f"look at {me.settings.model_store} there")
        me.tools.append(run.tool.name)


def service_options(me: HostRun) -> dict[str, Any]:
    """Which service of which stack, as the programs on a host are told."""
    if me.facts is None or me.facts.stack is None:
        raise Refused(me.name, "could not be inspected", next="tasks/preflight.py")
    stack = me.facts.stack
    return {
        "stack": me.settings.stack,
        "override": stack.override,
        "project": me.settings.project or stack.project,
        "service": me.settings.service,
    }


def probe_document(me: HostRun) -> dict[str, Any] | None:
    """The setting `probe`, as the programs on a host read it."""
    return me.settings.probe.model_dump() if me.settings.probe else None


def could_switch(run: Run, me: HostRun, lock: Lock) -> Mapping[str, Any]:
    """The host's own answer that it could switch to a release now. Nothing is changed. Raises Refused where it could not."""
    document = {"probe": probe_document(me)}
    return expect(call(run, me, "switch", "check", document=document, release=lock.id, **service_options(me)))


def wrong_in(checked: Mapping[str, Any]) -> list[str]:
    """What `store verify` found wrong with a release: damaged and missing blobs, and what in it is not as locked."""
    return [*(str(blob["what"]) for blob in checked["damaged"].values()), *checked["wrong"], *checked["missing"]]


def fail(me: HostRun, why: str, state: State = State.FAILED) -> bool:
    """Record that this host failed, say why, and return False, as an operation's command does."""
    me.says(state, why)
    me.target.log_styled(me.why, fg="red", log_func=logger.error)
    return False


def guarded(me: HostRun, work: Callable[[], bool], phase: str = "", good: State | None = None) -> FunctionCommand:
    """`work()` as a command whose refusals fail this host alone, in one clear line.

    phase: its name on the report's timeline. good: the state of a host that failed while this very phase did what it is
    for. A host that regressed is a failed one, but not to pyinfra: pyinfra would leave it out of what may take it back.
    """

    def command(state: Any, host: Any) -> bool:
        with me.phase(phase) as now:
            try:
                done = work()
            except Refused as no:
                done = fail(me, describe(no.error))
            now.ok = done or (good is not None and me.state is good)
            return done or (me.regressed and not me.taken_back)

    return FunctionCommand(command, (), {})
