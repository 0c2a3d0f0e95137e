"""How a phase reaches a machine: the tool (one zip of the remote programs), its calls, small files, and clear refusals.

Nothing here raises out of an operation: bad news about one host fails that host alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from gevent.lock import BoundedSemaphore
from pyinfra import logger
from pyinfra.api import FunctionCommand, QuoteString, StringCommand

from tasks.control import ssh as fleet
from tasks.control.reporting import recorder as report
from tasks.control.settings import Settings
from tasks.shared.answers import last_json_object
from tasks.shared.errors import Refused, describe
from tasks.shared.lock import Lock

ROOT = Path(__file__).parents[1]  # tasks/
_tools = BoundedSemaphore(1)


def sources() -> dict[str, bytes]:
    """{path in the zip: content}: the remote programs and what they share with us, under the same import names as here.

    The entry point stands at the top, where Python looks for it.
    """
    folders = (ROOT / "shared", ROOT / "remote")
    files = [ROOT / "__init__.py", *(path for folder in folders for path in folder.rglob("*.py"))]
    found = {str(path.relative_to(ROOT.parent)): path.read_bytes() for path in files}
    return {**found, "__main__.py": found.pop("tasks/remote/__main__.py")}


@cache
def tool() -> tuple[str, bytes]:
    """(name, bytes) of the zip of remote programs; the same sources give the same bytes, so its name is its content."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(sources().items()):
            info = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    data = packed.getvalue()
    return f"tool-{hashlib.sha256(data).hexdigest()[:12]}.pyz", data


def tool_path(settings: Settings) -> str:
    return f"{settings.model_store}/tool/{tool()[0]}"


def options(**values: Any) -> list[str]:
    """Keywords as a command's options: True is a flag, None and False are left out, a list repeats its option."""
    words = []
    for key, value in values.items():
        name = f"--{key.rstrip('_').replace('_', '-')}"
        for each in value if isinstance(value, list | tuple) else [value]:
            if each is True:
                words.append(name)
            elif each is not None and each is not False:
                words += [name, str(each)]
    return words


def call(
    target: Any, *program: str, document: str | None = None, deadline: int = 600, python: str = "python3", **more: Any
) -> dict[str, Any]:
    """Run a program of the tool on `target`'s store; its JSON, or {"ok": False, "answered": False, "error": …} when it
    gave none.

    `deadline` (seconds) bounds it there and here; `more` are its options. Never raises.
    """
    settings = report.RESULTS[target.name]["settings"]
    words = [*program, *options(store=settings.model_store, **more)]
    command = StringCommand(
        # coreutils' timeout as well: pyinfra's own leaves the remote process running.
        f"timeout -k 10 {deadline + 30}",
        QuoteString(python),
        QuoteString(tool_path(settings)),
        *[QuoteString(word) for word in words],
    )
    ok, output = fleet.run(target, command, document, deadline + 60)
    answer, no = last_json_object(output.stdout_lines, "ok"), None
    if answer is None:
        what = f"`{' '.join(program)}` gave no answer"
        said = "; ".join(output.stderr_lines[-3:]) or "no output; did the connection break?"
        mend = "the same again, which ends what was begun"
        no = {"where": target.name, "what": what, "found": said, "next": mend}
    elif answer.get("ok") and not ok:
        no = {"where": target.name, "what": f"`{program[0]}` failed after its answer"}
    return {"ok": False, "answered": False, "error": no} if answer is None or no else answer


def service(target: Any, settings: Settings) -> dict[str, Any]:
    """Which service of which stack, as the programs on a host are told."""
    stack = report.RESULTS[target.name]["seen"]["stack"]
    return {
        "stack": settings.stack,
        "override": stack["override"],
        "project": settings.project or stack["project"],
        "service": settings.service,
    }


def probe(settings: Settings) -> dict[str, Any] | None:
    return settings.probe.model_dump() if settings.probe else None


def can_switch(target: Any, settings: Settings, lock: Lock) -> dict[str, Any]:
    """The host's own answer whether it could switch to a release now; nothing is changed."""
    document = json.dumps({"probe": probe(settings)})
    return call(target, "switch", "check", document=document, release=lock.id, **service(target, settings))


def put(target: Any, path: str, data: bytes) -> bool:
    """Write a small file on `target`: staged beside, checked by digest, renamed."""
    digest = hashlib.sha256(data).hexdigest()
    staged = f"{path}.{os.getpid()}.put"
    if not fleet.send(target, data, staged):
        return False
    check = StringCommand("echo", QuoteString(f"{digest}  {staged}"), "| sha256sum -c --quiet && chmod 0644 --")
    move = StringCommand(check, QuoteString(staged), "&& mv -T --", QuoteString(staged), QuoteString(path))
    return fleet.run(target, move, None, 60)[0]


def ensure_tool(target: Any) -> None:
    """The tool on `target`, once a run; hosts that share a bastion wait for the one that brings it."""
    settings, seen = report.RESULTS[target.name]["settings"], report.RESULTS[target.name]["seen"]
    if not seen:
        raise Refused(target.name, "could not be looked at", next="tasks/preflight.py")
    tools = seen["store"]["tools"]
    with _tools:
        if tool()[0] in tools:
            return
        path = tool_path(settings)
        arrived = f"{path}.{os.getpid()}"
        folder = StringCommand("umask 022; mkdir -p --", QuoteString(os.path.dirname(path)))
        place = StringCommand("python3", QuoteString(arrived), "bytecode --to", QuoteString(path))
        made = fleet.run(target, folder, None, 60)[0] and put(target, arrived, tool()[1])
        if not made or not fleet.run(target, place, None, 120)[0]:
            raise Refused(target.name, "cannot write the tool", next=f"look at {settings.model_store} there")
        tools.append(tool()[0])


def fail(target: Any, why: str, state_word: str = "failed") -> bool:
    report.record(target.name, state=state_word, why=why)
    target.log_styled(report.RESULTS[target.name]["why"], fg="red", log_func=logger.error)
    return False


def guarded(work: Callable[[Any], bool], phase: str = "", well: str = "") -> FunctionCommand:
    """`work(host)` as a command whose refusals and connection errors fail this host alone, in one clear line.

    Its time goes into the report, under the name of its phase; `well` is the state of a host that failed while this very
    phase did what it is for. A host that `fell` is a failed one, but not to pyinfra, which would leave it out of what may
    take it back.
    """

    def run(state: Any, host: Any) -> bool:
        with report.phase(host.name, phase) as said:
            try:
                good = work(host)
            except Refused as no:
                good = fail(host, describe(no.error))
            known = report.RESULTS[host.name]
            said["ok"] = good or known.get("state") == well
            return good or bool(known.get("fell") and not known.get("taken_back"))

    return FunctionCommand(run, (), {})


def broken(checked: Mapping[str, Any]) -> list[str]:
    """What `store verify` found wrong with a release, named: damaged and missing blobs, and what in it is not as locked."""
    return [blob["what"] for blob in checked["damaged"].values()] + checked["wrong"] + checked["missing"]


def expect(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The answer of a program, or Refused with its reason."""
    if not answer.get("ok"):
        error = answer.get("error") or {}
        raise Refused(*(str(error.get(key, "")) for key in ("where", "what", "expected", "found", "next")))
    return answer
