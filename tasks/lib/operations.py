"""What should be: one fat operation a phase. The only place where commands are built, with calls.py.

Every operation records evidence for the gates, and fails its own host alone: bad news about one host is `return False`
inside a FunctionCommand, never an exception, which would end the run for all.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gevent.lock import BoundedSemaphore
from pyinfra import host, logger, state
from pyinfra.api import FunctionCommand, QuoteString, StringCommand, operation

from tasks.lib import compose, fitness, fleet, report
from tasks.lib.calls import call, ensure_tool, expect, fail, guarded, put, tool_path
from tasks.lib.display import Pushes
from tasks.lib.release import Lock, Refused, blobs, image_blobs, missing, model_blobs, say
from tasks.lib.settings import Settings, image_name

PINS = Path(__file__).parent.parent / "remote" / "requirements.txt"
_pushes: dict[int, BoundedSemaphore] = {}


# -------------------------------------------------------------------------------------------------------- preflight


@operation(is_idempotent=False)
def preflight(problems: list[str]):
    """Fail this host with everything that it lacks; else it is fit."""
    if problems:
        report.record(host.name, state="unfit", why="; ".join(problems))

        def tell(state: Any, host: Any) -> bool:
            for problem in problems:
                host.log_styled(problem, fg="red", log_func=logger.error)
            return False

        yield FunctionCommand(tell, (), {})
        return
    report.record(host.name, fit=True, state="fit")
    host.noop("fit for the release")


# ------------------------------------------------------------------------------------------------------ the bastion


def hub(settings: Settings, **more: Any) -> str:
    """What fetch reads on standard input: the token goes this way alone, never by argv, environment or disk."""
    token = os.environ.get(settings.token_variable) or None
    return json.dumps({"token": token, "endpoint": settings.hub, "xet": settings.xet, **more})


def ensure_venv(target: Any, settings: Settings) -> None:
    """fetch's own Python environment on the bastion, with pinned packages, built once for each set of pins."""
    pins = PINS.read_bytes()
    mark = hashlib.sha256(pins).hexdigest()[:12]
    venv = f"{settings.model_store}/venv-{mark}"
    store = QuoteString(settings.model_store)
    have = StringCommand("test -x", QuoteString(f"{venv}/bin/python"), "&& test -e", QuoteString(f"{venv}/.whole"))
    if fleet.run(target, have, None, 60)[0]:
        return
    if not put(target, f"{settings.model_store}/requirements-{mark}.txt", pins):
        raise Refused(target.name, "cannot write the requirements of fetch", next=f"look at {settings.model_store}")
    wanted = QuoteString(f"{settings.model_store}/requirements-{mark}.txt")
    path = QuoteString(venv)
    build = StringCommand(
        "cd", store, "&& rm -rf --", path, "&& python3 -m venv", path, "&&", QuoteString(f"{venv}/bin/pip")
    )
    build = StringCommand(
        build, "install --quiet --only-binary=:all: -r", wanted, "&& touch", QuoteString(f"{venv}/.whole")
    )
    ok, output = fleet.run(target, build, None, 1200)
    if not ok:
        said = "; ".join(output.stderr_lines[-3:])
        raise Refused(
            target.name, "cannot install huggingface_hub for fetch", "pip to succeed", said, "pip's settings there"
        )


def fetch_call(target: Any, verb: str, settings: Settings, document: str, deadline: int) -> dict[str, Any]:
    """`fetch` runs in the venv; the rest of the tool needs the standard library alone."""
    mark = hashlib.sha256(PINS.read_bytes()).hexdigest()[:12]
    command = StringCommand(
        f"timeout -k 10 {deadline + 60}",
        QuoteString(f"{settings.model_store}/venv-{mark}/bin/python"),
        QuoteString(tool_path(settings)),
        "fetch",
        verb,
        "--store",
        QuoteString(settings.model_store),
        f"--deadline {deadline}",
    )
    _, output = fleet.run(target, command, document, deadline + 90)
    try:
        return json.loads(output.stdout_lines[-1])
    except (IndexError, ValueError):
        said = "; ".join(output.stderr_lines[-3:]) or "no output"
        return {"ok": False, "error": {"where": target.name, "what": f"`fetch {verb}` gave no answer", "found": said}}


def set_up_bastion(target: Any, settings: Settings) -> None:
    ensure_tool(target)
    expect(call(target, "store", "setup", "--store", settings.model_store))


@operation(is_idempotent=True)
def fetch(lock: Lock, settings: Settings):
    """Bring every blob of the lock into the bastion's store, each verified before it enters."""
    seen = report.RESULTS[host.name]["seen"]
    need = fitness.lacking(seen, lock)
    total = sum(blobs(lock).values())
    report.record(host.name, release=lock.id, total_bytes=total, there_bytes=total - sum(need.values()), moved_bytes=0)
    if not need:
        report.record(host.name, fetched=True, state="as locked")
        host.noop("every blob of the lock is in the store")
        return
    report.record(host.name, state="would change", moved_bytes=sum(need.values()) if not state.is_executing else 0)

    def work(host: Any) -> bool:
        set_up_bastion(host, settings)
        moved = 0
        if missing(model_blobs(lock), seen["store"]["blobs"]):
            ensure_venv(host, settings)
            document = hub(settings, lock=lock.document)
            moved += expect(fetch_call(host, "download", settings, document, settings.fetch_deadline))["bytes"]
        if missing(image_blobs(lock), seen["store"]["blobs"]):
            moved += sum(missing(image_blobs(lock), seen["store"]["blobs"]).values())
            export_image(host, settings, lock)
        report.record(host.name, fetched=True, state="as locked", moved_bytes=moved)
        return True

    yield guarded(work)


def export_image(target: Any, settings: Settings, lock: Lock | None) -> Mapping[str, Any]:
    """The image's blobs into the bastion's store; with a lock, Refused when the image is another one by now."""
    name = image_name(settings.image)
    words = ("store", "image", "--store", settings.model_store, "--image-source", settings.image, "--name", name)
    entry = expect(call(target, *words, deadline=3600))["image"]
    if lock and entry["manifest"]["digest"] != f"sha256:{lock.image.manifest.sha256}":
        found, expected = entry["manifest"]["digest"], f"sha256:{lock.image.manifest.sha256}"
        raise Refused(
            settings.image, "is another image by now", expected, found, "tasks/lock.py, if it should be this one"
        )
    return entry


@operation(is_idempotent=True)
def prove(lock: Lock, settings: Settings, goldens: Any):
    """Load and embed on the bastion with the network cut; the embeddings become the goldens next to the lock."""
    seen = report.RESULTS[host.name]["seen"]
    if goldens.has(lock):
        report.record(host.name, proven=True, state="proven")
        host.noop("the release has goldens in git")
        return
    if not seen["docker"] or not seen["docker"]["compose"]:
        report.record(host.name, proven=True, state="ready", why="no container engine here: goldens must be accepted")
        host.noop("no container engine on the bastion: accept the goldens of a host")
        return

    def work(host: Any) -> bool:
        document = json.dumps(lock.document)
        store, folder = settings.model_store, f"{settings.model_store}/state/{lock.id}"
        set_up_bastion(host, settings)
        # The bastion has no GPU as a rule; its goldens are of its own class, and the tolerance knows.
        here = settings.model_copy(update={"gpus": 0})
        expect(call(host, "store", "admit", "--store", store, document=document, deadline=3600))
        expect(call(host, "engine", "load", "--store", store, document=document, deadline=3600))
        text = compose.smoke_only(lock, here, tool_path(settings), goldens=False)
        if not put(host, f"{folder}/compose.smoke.yaml", text.encode()):
            raise Refused(host.name, "cannot write the smoke test's compose file", next=f"look at {folder}")
        answer = smoke(host, lock, here, [f"{folder}/compose.smoke.yaml"], folder)
        goldens.save(lock, answer["embeddings"])
        report.record(host.name, proven=True, state="proven", latency_ms=answer["latency_ms"]["page"])
        report.record(host.name, outbound_attempts=answer["outbound_attempts"])
        return True

    yield guarded(work)


def smoke(target: Any, lock: Lock, settings: Settings, files: list[str], directory: str) -> Mapping[str, Any]:
    words: list[Any] = [
        "smoke",
        "--store",
        settings.model_store,
        "--release",
        lock.id,
        "--deadline",
        settings.smoke_deadline,
    ]
    words += ["--project", f"hf-smoke-{lock.short}", "--project-directory", directory]
    for path in files:
        words += ["--file", path]
    return expect(call(target, "engine", *words, deadline=settings.smoke_deadline + 60))


# ---------------------------------------------------------------------------------------------------- the GPU hosts


@operation(is_idempotent=True)
def stage(lock: Lock, settings: Settings, goldens: Any):
    """Push what the host lacks, admit it, load the image, smoke-test it: one operation, so that no host waits."""
    seen = report.RESULTS[host.name]["seen"]
    need, total = fitness.lacking(seen, lock), sum(blobs(lock).values())
    there = total - sum(need.values())
    report.record(host.name, release=lock.id, total_bytes=total, there_bytes=there, moved_bytes=0)
    text = compose.override(lock, settings, tool_path(settings), goldens.has(lock))
    whole = fitness.staged(seen, lock, text)
    old = fitness.stale(seen, lock, settings, fleet.now()) and not fitness.active(seen, settings, lock, text)
    if whole and not old and not settings.verify and goldens.has(lock):
        about = seen["store"]["states"][lock.id]
        tell(host, about["smoke"])
        report.record(host.name, staged=True, state="ready", verified=about["verified"]["at"])
        host.noop("staged before: bytes proven and smoke test passed")
        return
    report.record(host.name, state="would change", moved_bytes=0 if state.is_executing else sum(need.values()))

    def work(host: Any) -> bool:
        again = bool(settings.verify) or old
        return stage_host(host, lock, settings, goldens, again)

    yield guarded(work)


def stage_host(target: Any, lock: Lock, settings: Settings, goldens: Any, again: bool) -> bool:
    document = json.dumps(lock.document)
    store, folder = settings.model_store, f"{settings.model_store}/state/{lock.id}"
    set_up_host(target, settings)
    if again:
        checked = expect(call(target, "store", "verify", "--store", store, document=document, deadline=3600))
        damaged = checked["damaged"]
        for blob in damaged.values():
            found = f"damaged: {blob['what']}; expected sha256 {blob['expected']}, found {blob['found']}; it is pushed again"
            target.log_styled(found, fg="red", log_func=logger.error)
        report.record(target.name, repaired=sorted(blob["what"] for blob in damaged.values()))
    bastion = fleet.bastion()
    there = report.RESULTS[bastion.name]["settings"].model_store
    expect(call(bastion, "push", "idle", "--store", there, "--host", target.name, deadline=120))
    user = ("--user", settings.push_user)
    ready = expect(call(target, "store", "ready", "--store", store, *user, document=document))
    moved = push(target, settings, ready["missing"])
    admitted = expect(call(target, "store", "admit", "--store", store, *user, document=document, deadline=3600))
    ledger(target, lock, ready, moved, admitted)
    report.record(target.name, recreate=bool(admitted["relinked"] or admitted["replaced"]))
    expect(call(target, "engine", "load", "--store", store, document=document, deadline=3600))
    return smoke_host(target, lock, settings, goldens, folder)


def smoke_host(target: Any, lock: Lock, settings: Settings, goldens: Any, folder: str) -> bool:
    golden = goldens.has(lock)
    text = compose.override(lock, settings, tool_path(settings), golden)
    if golden and not put(target, f"{folder}/goldens.json", goldens.text(lock).encode()):
        raise Refused(target.name, "cannot write the goldens", next=f"look at {folder}")
    if not put(target, f"{folder}/compose.override.candidate.yaml", text.encode()):
        raise Refused(target.name, "cannot write the override", next=f"look at {folder}")
    stack = report.RESULTS[target.name]["seen"]["stack"]
    files = [f"{settings.stack}/{stack['files'][0]}", f"{folder}/compose.override.candidate.yaml"]
    answer = smoke(target, lock, settings, files, settings.stack)
    tell(target, answer)
    # Only a smoke test that passed makes the override one that activate may take.
    if not put(target, f"{folder}/compose.override.yaml", text.encode()):
        raise Refused(target.name, "cannot write the override", next=f"look at {folder}")
    when = time.strftime("%FT%TZ", time.gmtime())
    if not golden:
        accept = f"tasks/lock.py --data accept_goldens_from={target.name}"
        return fail(
            target, f"passed its smoke test, but there are no goldens to compare with. Next: {accept}", "not proven"
        )
    report.record(target.name, staged=True, state="ready", verified=when)
    return True


def set_up_host(target: Any, settings: Settings) -> None:
    """The store, the tool, and a push user whose one key can write below incoming/ and nothing else."""
    bastion = fleet.bastion()
    ensure_tool(target)
    ensure_tool(bastion)
    hub_settings = report.RESULTS[bastion.name]["settings"]
    key = expect(call(bastion, "push", "key", "--store", hub_settings.model_store))["key"]
    source = settings.push_from or expect(call(bastion, "push", "source", "--to", address(target, settings)))["source"]
    words = ("--store", settings.model_store, "--user", settings.push_user, "--key", key, "--from", source)
    expect(call(target, "store", "setup", *words))


def address(target: Any, settings: Settings) -> str:
    return settings.push_address or target.data.get("ssh_hostname") or target.name


def push(target: Any, settings: Settings, need: Mapping[str, int]) -> Mapping[str, Any]:
    """Bastion to host, at most `push_parallel` at once; a failure is this host's alone."""
    if not need:
        return {"moved": 0, "matched": 0, "sent": 0}
    bastion = fleet.bastion()
    store = report.RESULTS[bastion.name]["settings"].model_store
    port = settings.push_port or target.data.get("ssh_port") or 22
    name = target.data.get("ssh_hostname") or target.name
    alias = name if (target.data.get("ssh_port") or 22) == 22 else f"[{name}]:{target.data.get('ssh_port')}"
    words = [
        "send",
        "--store",
        store,
        "--host",
        target.name,
        "--to",
        f"{settings.push_user}@{address(target, settings)}",
    ]
    words += [
        "--port",
        port,
        "--alias",
        alias,
        "--limit",
        settings.bandwidth_limit,
        "--deadline",
        settings.push_deadline,
    ]
    known = Path(target.data.get("ssh_known_hosts_file") or "~/.ssh/known_hosts").expanduser()
    document = json.dumps({"blobs": dict(need), "known_hosts": known.read_text(encoding="utf-8")})

    def look() -> dict[str, Any]:
        return call(bastion, "push", "status", "--store", store, deadline=30).get("running", {})

    with _pushes.setdefault(settings.push_parallel, BoundedSemaphore(settings.push_parallel)), Pushes.of(look):
        return expect(call(bastion, "push", *words, document=document, deadline=settings.push_deadline))


def ledger(
    target: Any, lock: Lock, ready: Mapping[str, Any], moved: Mapping[str, Any], admitted: Mapping[str, Any]
) -> None:
    """sent + there already = the lock's total, or the host fails: an exit code of 0 proves no byte."""
    total, need = sum(blobs(lock).values()), sum(ready["missing"].values())
    whole = sum(size for name, size in ready["partial"].items() if size == ready["missing"][name])
    if moved["moved"] + moved["matched"] + whole < need or total - need + admitted["admitted"] != total:
        found = f"{moved['moved']} sent, {moved['matched'] + whole} resumed, {total - need} there, {admitted['admitted']} admitted"
        raise Refused(
            target.name, "the ledger does not add up", f"{total} bytes in the lock", found, "the deploy again"
        )
    report.record(target.name, there_bytes=total - moved["moved"], moved_bytes=moved["moved"], sent_bytes=moved["sent"])


def tell(target: Any, smoke: Mapping[str, Any]) -> None:
    cosine = (smoke.get("cosine") or {}).get("mean")
    report.record(target.name, cosine=cosine, latency_ms=smoke["latency_ms"]["page"])
    report.record(target.name, outbound_attempts=smoke["outbound_attempts"])


@operation(is_idempotent=True)
def activate(lock: Lock, settings: Settings):
    """Switch the service to the release by one program on the host, which reverts by itself when it is not healthy."""
    known = report.RESULTS[host.name]
    text = compose.override(lock, settings, tool_path(settings), True)
    if fitness.active(known["seen"], settings, lock, text) and not known.get("recreate"):
        changed = known.get("moved_bytes") or known.get("repaired")
        report.record(host.name, confirmed=True, state="active" if changed else "unchanged")
        host.noop("the service runs this release")
        return

    def work(host: Any) -> bool:
        stack = known["seen"]["stack"]
        project = settings.project or stack["project"]
        words: list[Any] = [
            "activate",
            "--store",
            settings.model_store,
            "--release",
            lock.id,
            "--stack",
            settings.stack,
        ]
        words += ["--override", stack["override"], "--project", project, "--service", settings.service]
        words += ["--deadline", settings.health_deadline, *(["--recreate"] if known.get("recreate") else [])]
        expected = compose.environment(lock, settings)
        probe = settings.probe.model_dump() if settings.probe else None
        document = json.dumps({"who": who(), "why": "deploy", "probe": probe, "expect_env": expected})
        # its own deadline to get healthy, and then up to five minutes to revert
        answer = call(host, "switch", *words, document=document, deadline=2 * settings.health_deadline + 420)
        if not answer.get("ok"):
            return fail(host, say(answer.get("error") or {}), answer.get("state") or "failed")
        report.record(host.name, confirmed=True, state="active", probe=answer.get("probe"))
        return True

    yield guarded(work)


def who() -> str:
    return f"{os.environ.get('USER') or os.environ.get('LOGNAME') or 'unknown'}@{os.uname().nodename}"
