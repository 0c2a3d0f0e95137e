"""On the bastion: the Hub's files and the image into its store, and the release proven there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from pyinfra import host, state
from pyinfra.api import QuoteString, StringCommand, operation

from tasks.control import compose
from tasks.control import preflight as fitness
from tasks.control import ssh as fleet
from tasks.control.operations import signing
from tasks.control.operations.staging import smoke, tell
from tasks.control.reporting import recorder as report
from tasks.control.settings import Settings, image_name
from tasks.control.tool import ROOT, call, ensure_tool, expect, fail, guarded, put, tool_path
from tasks.shared.blobs import missing_blobs
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock
from tasks.shared.signatures import sign_command

PINS = ROOT / "remote/bastion/requirements.txt"


def hub(settings: Settings, **more: Any) -> str:
    """What fetch reads on standard input: the token goes this way alone, never by argv, environment or disk."""
    token = os.environ.get(settings.token_variable) or None
    return json.dumps({"token": token, "endpoint": settings.hub, "xet": settings.xet != "off", **more})


def venv(settings: Settings) -> str:
    """fetch's own Python environment, one for each set of pinned packages; the rest of the tool needs none."""
    return f"{settings.model_store}/venv-{hashlib.sha256(PINS.read_bytes()).hexdigest()[:12]}"


def ensure_venv(target: Any, settings: Settings) -> None:
    """The environment on the bastion, built once; `.whole` tells one that pip finished from one that was cut off."""
    path, pins = venv(settings), f"{venv(settings)}.txt"
    whole = QuoteString(f"{path}/.whole")
    if fleet.run(target, StringCommand("test -e", whole), None, 60)[0]:
        return
    if not put(target, pins, PINS.read_bytes()):
        raise Refused(target.name, "cannot write the requirements of fetch", next=f"look at {settings.model_store}")
    make = StringCommand("rm -rf --", QuoteString(path), "&& python3 -m venv", QuoteString(path))
    pip = StringCommand(QuoteString(f"{path}/bin/pip"), "install --quiet --only-binary=:all: -r", QuoteString(pins))
    ok, output = fleet.run(target, StringCommand(make, "&&", pip, "&& touch", whole), None, 1200)
    if not ok:
        what, said = "cannot install huggingface_hub for fetch", "; ".join(output.stderr_lines[-3:])
        raise Refused(target.name, what, "pip to succeed", said, "pip's settings there")


def fetch_call(target: Any, verb: str, settings: Settings, document: str, deadline: int) -> dict[str, Any]:
    """`fetch` runs in its venv, and ends what it started a minute before we give up on it."""
    python = f"{venv(settings)}/bin/python"
    return call(target, "fetch", verb, document=document, deadline=deadline + 30, python=python, within=deadline)


def set_up_bastion(target: Any, settings: Settings) -> None:
    ensure_tool(target)
    expect(call(target, "setup"))


@operation(is_idempotent=True)
def fetch(lock: Lock, settings: Settings):
    """Bring every blob of the lock into the bastion's store, each verified before it enters."""
    seen = report.RESULTS[host.name]["seen"]
    if report.RESULTS[host.name]["state"] == "unfit":
        host.noop("unfit")
        return
    need = fitness.lacking(seen, lock)
    total = sum(lock.blobs().values())
    report.record(host.name, total_bytes=total, there_bytes=total - sum(need.values()), moved_bytes=0)
    if not need:
        report.record(host.name, fetched=True, state="as locked")
        host.noop("every blob of the lock is in the store")
        return
    report.record(host.name, state="would change", moved_bytes=sum(need.values()) if not state.is_executing else 0)

    def work(host: Any) -> bool:
        set_up_bastion(host, settings)
        signing.bring(host, settings, lock)
        moved = 0
        if settings.source == "bundle":
            moved = take(host, settings, lock)
        elif missing_blobs(lock.model_blobs(), seen["store"]["blobs"]):
            ensure_venv(host, settings)
            document = hub(settings, lock=lock.document)
            moved += expect(fetch_call(host, "download", settings, document, settings.fetch_deadline))["bytes"]
        if settings.source == "hub" and missing_blobs(lock.image_blobs(), seen["store"]["blobs"]):
            moved += sum(missing_blobs(lock.image_blobs(), seen["store"]["blobs"]).values())
            export_image(host, settings, lock)
        report.record(host.name, fetched=True, state="as locked", moved_bytes=moved)
        return True

    yield guarded(work, phase="fetch")


def take(target: Any, settings: Settings, lock: Lock) -> int:
    """The blobs that the store lacks, from the drive; -> bytes. Needs no Hub, no token, no venv and no skopeo."""
    document, within = json.dumps(lock.document), settings.fetch_deadline
    more: dict[str, Any] = {"bundle": settings.bundle, "within": within, "deadline": within + 600}
    return expect(call(target, "bundle", "take", document=document, **more))["bytes"]


def export_image(target: Any, settings: Settings, lock: Lock | None) -> Mapping[str, Any]:
    """The image's blobs into the bastion's store; with a lock, Refused when the image is another one by now."""
    name = image_name(settings.image)
    entry = expect(call(target, "engine", "export", source=settings.image, name=name, deadline=3600))["image"]
    if lock and entry["manifest"]["digest"] != f"sha256:{lock.image.manifest.sha256}":
        found, expected = entry["manifest"]["digest"], f"sha256:{lock.image.manifest.sha256}"
        mend = "tasks/lock.py, if it should be this one"
        raise Refused(settings.image, "is another image by now", expected, found, mend)
    return entry


@operation(is_idempotent=True)
def prove(lock: Lock, settings: Settings, goldens: Any):
    """Load and embed on the bastion with the network cut; the embeddings become the goldens next to the lock."""
    seen = report.RESULTS[host.name]["seen"]
    if report.RESULTS[host.name]["state"] == "unfit":
        host.noop("unfit")
        return
    if goldens.has(lock):
        if not report.would_change(host.name):
            report.record(host.name, proven=True, state="proven")
        host.noop("the release has goldens in git")
        return
    if not seen["docker"] or not seen["docker"]["compose"]:
        report.record(
            host.name, proven=True, state="as locked", why="no container engine here: goldens must be accepted"
        )
        host.noop("no container engine on the bastion: accept the goldens of a host")
        return

    def work(host: Any) -> bool:
        document = json.dumps(lock.document)
        set_up_bastion(host, settings)
        signing.bring(host, settings, lock)
        # The bastion has no GPU as a rule; its goldens are of its own class, and the tolerance knows.
        here = settings.model_copy(update={"gpus": 0})
        expect(call(host, "store", "admit", document=document, deadline=3600))
        expect(call(host, "engine", "load", document=document, deadline=3600))
        text = compose.smoke_only(lock, here, tool_path(settings), goldens=False)
        answer = smoke(host, lock, here, {"compose.smoke.yaml": text})
        goldens.save(lock, answer["embeddings"])
        tell(host, answer)
        if signing.asked_for():
            why = f"the release is proven, and its goldens are new: {goldens.path} is not signed"
            return fail(
                host, f"{why}. Next: {sign_command(str(goldens.path))}, commit, and the deploy again", "unsigned"
            )
        report.record(host.name, proven=True, state="proven")
        return True

    yield guarded(work, phase="prove")
