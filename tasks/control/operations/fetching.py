"""On the bastion: the Hub's files and the image into its store, and the release proven there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation

from tasks.control.host_run import Evidence, HostRun
from tasks.control.operations.signing import asked_for, bring_signatures
from tasks.control.operations.smoking import smoke
from tasks.control.rules import compose
from tasks.control.rules.preflight import missing
from tasks.control.rules.states import State
from tasks.control.run import Run
from tasks.control.settings import Settings
from tasks.control.settings_layers import image_name
from tasks.control.summaries import show_smoke
from tasks.control.tool import TASKS, call, ensure_tool, expect, fail, guarded, put_file
from tasks.shared.blobs import missing_blobs
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock
from tasks.shared.signatures import sign_command

PINS = TASKS / "remote/bastion/requirements.txt"


@operation(is_idempotent=True)
def fetch(run: Run) -> Any:
    """Bring every blob of the lock into the bastion's store. Each is hashed before it enters."""
    me, lock = run.hosts[host.name], run.release
    if me.state is State.UNFIT or me.facts is None:
        host.noop("unfit")
        return
    need, total = missing(me.facts, lock), sum(lock.blobs().values())
    me.report.total_bytes, me.report.there_bytes = total, total - sum(need.values())
    me.report.moved_bytes = 0
    if not need:
        me.says(State.UP_TO_DATE)
        host.noop("every blob of the lock is in the store")
        return
    me.says(State.WOULD_CHANGE)
    if not run.is_executing():
        me.report.moved_bytes = sum(need.values())
    yield guarded(me, lambda: fetch_all(run, me, lock), phase="fetch")


def fetch_all(run: Run, me: HostRun, lock: Lock) -> bool:
    settings, have = me.settings, (me.facts.store.blobs if me.facts else None) or {}
    set_up_bastion(run, me)
    bring_signatures(run, me, lock)
    moved = 0
    if settings.source == "bundle":
        moved = take_from_bundle(run, me, lock)
    elif missing_blobs(lock.model_blobs(), have):
        ensure_venv(run, me)
        document = hub_document(settings, lock=lock.document)
        moved += expect(call_fetch(run, me, "download", document, settings.fetch_deadline))["bytes"]
    if settings.source == "hub" and (image := missing_blobs(lock.image_blobs(), have)):
        moved += sum(image.values())
        export_image(run, me, lock)
    me.says(State.UP_TO_DATE)
    me.report.moved_bytes = moved
    return True


def set_up_bastion(run: Run, me: HostRun) -> None:
    ensure_tool(run, me)
    expect(call(run, me, "setup"))


def take_from_bundle(run: Run, me: HostRun, lock: Lock) -> int:
    """Bring the blobs that the store lacks from the drive; return their bytes. Needs no Hub, token, venv or skopeo."""
    within = me.settings.fetch_deadline
    more: dict[str, Any] = {"bundle": me.settings.bundle, "within": within, "deadline": within + 600}
    return int(expect(call(run, me, "bundle", "take", document=lock.document, **more))["bytes"])


def export_image(run: Run, me: HostRun, lock: Lock | None) -> Mapping[str, Any]:
    """Bring the image's blobs into the bastion's store; return the image's entry of a lock.

    With a lock, raises Refused where the image is another one by now.
    """
    settings = me.settings
    name = image_name(settings.image)
    answer = call(run, me, "export", "image", source=settings.image, name=name, deadline=3600)
    entry: Mapping[str, Any] = expect(answer)["image"]
    if lock and entry["manifest"]["digest"] != f"sha256:{lock.image.manifest.sha256}":
        found, expected = entry["manifest"]["digest"], f"sha256:{lock.image.manifest.sha256}"
        fix = "tasks/lock.py, if it should be this one"
        raise Refused(settings.image, "is another image by now", expected, found, fix)
    return entry


# ---------------------------------------------------------------------------------------------- the Hub's own client


def hub_document(settings: Settings, **more: Any) -> dict[str, Any]:
    """What fetch reads on standard input. The token goes this way alone, never by argv, environment or disk."""
    token = os.environ.get(settings.token_variable) or None
    return {"token": token, "endpoint": settings.hub, "xet": settings.xet != "off", **more}


def venv(settings: Settings) -> str:
    """Where fetch's own Python environment is, one for each set of pinned packages. The rest of the tool needs none."""
    return f"{settings.model_store}/venv-{hashlib.sha256(PINS.read_bytes()).hexdigest()[:12]}"


def ensure_venv(run: Run, me: HostRun) -> None:
    """Build that environment on the bastion, once. `.whole` tells one that pip finished from one that was cut off."""
    path = venv(me.settings)
    pins, whole = f"{path}.txt", QuoteString(f"{path}/.whole")
    if run.sessions.run(me.target, StringCommand("test -e", whole), None, 60)[0]:
        return
    if not put_file(run, me, pins, PINS.read_bytes()):
        fix = f"look at {me.settings.model_store}"
        raise Refused(me.name, "cannot write the requirements of fetch", next=fix)
    make = StringCommand("rm -rf --", QuoteString(path), "&& python3 -m venv", QuoteString(path))
    pip = StringCommand(QuoteString(f"{path}/bin/pip"), "install --quiet --only-binary=:all: -r", QuoteString(pins))
    ok, output = run.sessions.run(me.target, StringCommand(make, "&&", pip, "&& touch", whole), None, 1200)
    if not ok:
        what, found = "cannot install huggingface_hub for fetch", "; ".join(output.stderr_lines[-3:])
        raise Refused(me.name, what, "pip to succeed", found, "pip's settings there")


def call_fetch(run: Run, me: HostRun, verb: str, document: Any, deadline: int) -> dict[str, Any]:
    """Call `fetch` in its environment. It ends what it started before we give up on it. deadline: seconds."""
    python = f"{venv(me.settings)}/bin/python"
    return call(run, me, "fetch", verb, document=document, deadline=deadline + 30, python=python, within=deadline)


# ------------------------------------------------------------------------------------------------------------- prove


@operation(is_idempotent=True)
def prove(run: Run) -> Any:
    """Load and embed on the bastion with the network cut. The embeddings become the goldens next to the lock."""
    me, lock = run.hosts[host.name], run.release
    if me.state is State.UNFIT or me.facts is None:
        host.noop("unfit")
        return
    if run.goldens.belong_to(lock):
        if run.is_executing() or me.state is not State.WOULD_CHANGE:
            me.says(State.PROVEN)
            me.evidence.add(Evidence.PROVEN)
        host.noop("the release has goldens in git")
        return
    if me.facts.docker is None or not me.facts.docker.compose:
        me.says(State.UP_TO_DATE, "no container engine here: goldens must be accepted")
        me.evidence.add(Evidence.PROVEN)
        host.noop("no container engine on the bastion: accept the goldens of a host")
        return
    yield guarded(me, lambda: prove_release(run, me, lock), phase="prove")


def prove_release(run: Run, me: HostRun, lock: Lock) -> bool:
    set_up_bastion(run, me)
    bring_signatures(run, me, lock)
    expect(call(run, me, "store", "admit", document=lock.document, deadline=3600))
    expect(call(run, me, "engine", "load", document=lock.document, deadline=3600))
    # The bastion has no GPU as a rule. Its goldens are of its own class, and the tolerance knows.
    here = me.settings.model_copy(update={"gpus": 0})
    text = compose.smoke_only(lock, here, run.tool.path(here.model_store), goldens=False)
    answer = smoke(run, me, lock, {"compose.smoke.yaml": text})
    goldens = run.goldens
    goldens.save(lock, answer["embeddings"])
    show_smoke(me, answer)
    if asked_for(run):
        why = f"the release is proven, and its goldens are new: {goldens.path} is not signed"
        fix = f"{sign_command(str(goldens.path))}, commit, and the deploy again"
        return fail(me, f"{why}. Next: {fix}", State.UNSIGNED)
    me.says(State.PROVEN)
    me.evidence.add(Evidence.PROVEN)
    return True
