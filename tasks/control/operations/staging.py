"""On a GPU host: push what it lacks, admit it, load the image, smoke-test it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from gevent.lock import BoundedSemaphore
from pyinfra import host, logger, state
from pyinfra.api import operation

from tasks.control import compose
from tasks.control import drift as standing
from tasks.control import lockfile as locks
from tasks.control import preflight as fitness
from tasks.control import ssh as fleet
from tasks.control.operations import signing
from tasks.control.reporting import recorder as report
from tasks.control.reporting.progress import Pushes
from tasks.control.settings import Settings
from tasks.control.tool import broken, call, can_switch, ensure_tool, expect, fail, guarded, tool_path
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock


@operation(is_idempotent=True)
def stage(lock: Lock, settings: Settings, goldens: Any):
    """Push what the host lacks, admit it, load the image, smoke-test it: one operation, so that no host waits."""
    seen = report.RESULTS[host.name]["seen"]
    if report.RESULTS[host.name]["state"] == "unfit":
        host.noop("unfit")
        return
    need, total = fitness.lacking(seen, lock), sum(lock.blobs().values())
    report.record(host.name, total_bytes=total, there_bytes=total - sum(need.values()), moved_bytes=0)
    digest = goldens.digest(lock)
    golden = digest is not None
    text = compose.override(lock, settings, tool_path(settings), golden)
    whole = standing.staged(seen, lock, text, locks.signatures(settings, golden), digest)
    old = standing.unproven(seen, settings, lock, text, fleet.now())
    if whole and not old and not settings.verify and golden:
        about = seen["store"]["states"][lock.id]
        tell(host, about["smoke"])
        report.record(host.name, state="ready", verified=about["verified"]["at"])
        if standing.active(seen, settings, lock, text):
            report.record(host.name, staged=True)
            host.noop("staged before, and serves: bytes proven and smoke test passed")
        else:
            yield guarded(lambda host: could_switch(host, settings, lock), phase="stage")
        return
    report.record(host.name, state="would change", moved_bytes=0 if state.is_executing else sum(need.values()))

    def work(host: Any) -> bool:
        again = bool(settings.verify) or old
        return stage_host(host, lock, settings, goldens, again)

    yield guarded(work, phase="stage")


def stage_host(target: Any, lock: Lock, settings: Settings, goldens: Any, again: bool) -> bool:
    document = json.dumps(lock.document)
    set_up_host(target, settings)
    signing.bring(target, settings, lock)
    if again:
        checked = expect(call(target, "store", "verify", document=document, deadline=3600))
        damaged = checked["damaged"]
        for blob in damaged.values():
            found = f"damaged: {blob['what']}; expected sha256 {blob['expected']}, found {blob['found']}; it is pushed again"
            target.log_styled(found, fg="red", log_func=logger.error)
        report.record(target.name, repaired=sorted(blob["what"] for blob in damaged.values()))
    bastion = fleet.bastion()
    expect(call(bastion, "push", "idle", host=target.name, deadline=120))
    user = settings.push_user
    ready = expect(call(target, "store", "ready", user=user, document=document))
    moved = push(target, settings, ready["missing"])
    admitted = expect(call(target, "store", "admit", user=user, document=document, deadline=3600))
    ledger(target, lock, ready, moved, admitted)
    report.record(target.name, verified=admitted["verified"])
    expect(call(target, "engine", "load", document=document, deadline=3600))
    if not smoke_host(target, lock, settings, goldens):
        return False
    if again and (damaged or checked["wrong"] or not admitted["verified"]):
        after = expect(call(target, "store", "verify", document=document, deadline=3600))
        if bad := broken(after):
            raise Refused(
                target.name, "is damaged again", "every blob as locked", "; ".join(bad[:5]), "look at its disk"
            )
        report.record(target.name, verified=after["verified"])
    return could_switch(target, settings, lock)


def could_switch(target: Any, settings: Settings, lock: Lock) -> bool:
    """What its switch would refuse at the beginning stops the rollout here, before any host is switched."""
    ensure_tool(target)
    said = expect(can_switch(target, settings, lock))
    report.record(target.name, staged=True, state="ready", recreate=said["recreate"])
    return True


def smoke_host(target: Any, lock: Lock, settings: Settings, goldens: Any) -> bool:
    golden, stack = goldens.has(lock), report.RESULTS[target.name]["seen"]["stack"]
    texts = {"compose.override.yaml": compose.override(lock, settings, tool_path(settings), golden)}
    if golden:
        texts["goldens.json"] = goldens.text(lock)
    tell(target, smoke(target, lock, settings, texts, f"{settings.stack}/{stack['files'][0]}"))
    if not golden:
        accept = f"tasks/lock.py --data accept_goldens_from={target.name}"
        if not state.is_host_in_limit(fleet.bastion()):
            accept = f"the same with --limit {fleet.bastion().name} too, which proves the release and makes them"
        why = f"passed its smoke test, but there are no goldens to compare with. Next: {accept}"
        return fail(target, why, "not proven")
    return True


def set_up_host(target: Any, settings: Settings) -> None:
    """The store, the tool, and a push user whose one key can write below incoming/ and nothing else."""
    bastion = fleet.bastion()
    ensure_tool(target)
    ensure_tool(bastion)
    key = expect(call(bastion, "push", "key"))["key"]
    source = settings.push_from or expect(call(bastion, "push", "source", to=address(target, settings)))["source"]
    expect(call(target, "setup", user=settings.push_user, key=key, from_=source))


def address(target: Any, settings: Settings) -> str:
    return settings.push_address or target.data.get("ssh_hostname") or target.name


@cache
def pushes(parallel: int) -> BoundedSemaphore:
    """What lets so many hosts receive at once; one for the whole rollout."""
    return BoundedSemaphore(parallel)


def push(target: Any, settings: Settings, need: Mapping[str, int]) -> Mapping[str, Any]:
    """Bastion to host, at most `push_parallel` at once; a failure is this host's alone."""
    if not need:
        return {"moved": 0, "matched": 0, "sent": 0}
    bastion = fleet.bastion()
    port = target.data.get("ssh_port") or 22
    name = target.data.get("ssh_hostname") or target.name
    known = Path(target.data.get("ssh_known_hosts_file") or "~/.ssh/known_hosts").expanduser()
    document = json.dumps({"blobs": dict(need), "known_hosts": known.read_text(encoding="utf-8")})

    def look() -> dict[str, Any]:
        return call(bastion, "push", "status", deadline=30).get("running", {})

    with pushes(settings.push_parallel), Pushes.of(look):
        sent = call(
            bastion,
            "push",
            "send",
            document=document,
            deadline=settings.push_deadline + 30,
            within=settings.push_deadline,
            host=target.name,
            to=f"{settings.push_user}@{address(target, settings)}",
            port=settings.push_port or port,
            # The host key is known by the name that the inventory has, whatever address the bastion uses.
            alias=name if port == 22 else f"[{name}]:{port}",
            limit=settings.bandwidth_limit,
        )
    return expect(sent)


def ledger(
    target: Any, lock: Lock, ready: Mapping[str, Any], moved: Mapping[str, Any], admitted: Mapping[str, Any]
) -> None:
    """sent + there already = the lock's total, or the host fails: an exit code of 0 proves no byte."""
    total, need = sum(lock.blobs().values()), sum(ready["missing"].values())
    whole = sum(size for name, size in ready["partial"].items() if size == ready["missing"][name])
    if moved["moved"] + moved["matched"] + whole < need or total - need + admitted["admitted"] != total:
        found = f"{moved['moved']} sent, {moved['matched'] + whole} resumed, {total - need} there"
        found += f", {admitted['admitted']} admitted"
        expected = f"{total} bytes in the lock"
        raise Refused(target.name, "the ledger does not add up", expected, found, "the deploy again")
    report.record(target.name, there_bytes=total - moved["moved"], moved_bytes=moved["moved"], sent_bytes=moved["sent"])


def tell(target: Any, smoke: Mapping[str, Any]) -> None:
    """Into the report, what a smoke test found."""
    report.record(target.name, **standing.smoked(smoke), outbound_attempts=smoke["outbound_attempts"])


def smoke(
    target: Any, lock: Lock, settings: Settings, texts: Mapping[str, str], stack: str | None = None
) -> Mapping[str, Any]:
    """The smoke test of the release, by Compose; Refused with what it found wrong.

    `texts`: the files that it takes, {name: text}, the one for Compose first; `stack`: the file that this one is beside.
    """
    within = settings.smoke_deadline  # an earlier run's test may still be under way: it ends first
    more: dict[str, Any] = {"release": lock.id, "document": json.dumps(texts), "within": within}
    folder = expect(call(target, "engine", "candidate", deadline=within + 60, **more))["folder"]
    files = [stack] * bool(stack) + [f"{folder}/{next(iter(texts))}"]
    more = {"release": lock.id, "project": f"hf-smoke-{lock.short}", "file": files}
    more["project_directory"] = settings.stack if stack else folder
    if lock.delivery == "online":
        bring, document = settings.fetch_deadline, json.dumps(lock.document)
        brought = call(target, "engine", "bring", document=document, within=bring, deadline=2 * bring + 60, **more)
        report.record(target.name, loaded_bytes=expect(brought)["bytes"])
    return expect(call(target, "engine", "smoke", within=within, deadline=within + 60, **more))
