"""On a GPU host: push what it lacks, admit it, load the image, smoke-test it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyinfra import host, logger
from pyinfra.api import operation

from tasks.control.host_run import Evidence, HostRun
from tasks.control.operations.signing import bring_signatures
from tasks.control.operations.smoking import smoke
from tasks.control.rules import compose
from tasks.control.rules.states import State
from tasks.control.run import Run
from tasks.control.summaries import show_proof, show_smoke
from tasks.control.tool import call, could_switch, ensure_tool, expect, fail, guarded, wrong_in
from tasks.control.transports.protocol import Sent
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock


@operation(is_idempotent=True)
def stage(run: Run) -> Any:
    """Push, admit, load and smoke-test, as the host's plan says. One operation, so that no host waits for another."""
    me, lock, plan = run.hosts[host.name], run.release, run.hosts[host.name].plan
    if me.state is State.UNFIT or plan is None:
        host.noop("unfit")
        return
    total, need = sum(lock.blobs().values()), sum(plan.push.values())
    me.report.total_bytes, me.report.there_bytes, me.report.moved_bytes = total, total - need, 0
    if plan.stage:
        me.says(State.WOULD_CHANGE)
        if not run.is_executing():
            me.report.moved_bytes = need
        yield guarded(me, lambda: stage_host(run, me, lock), phase="stage")
        return
    show_proof(me, lock.id)
    me.report.outbound_attempts = proven_attempts(me, lock)
    me.says(State.READY)
    if not plan.switch:
        me.evidence.add(Evidence.STAGED)
        host.noop("staged before, and serves: bytes proven and smoke test passed")
        return
    yield guarded(me, lambda: check_switch(run, me, lock), phase="stage")


def proven_attempts(me: HostRun, lock: Lock) -> int | None:
    """The outbound attempts of the smoke test that the host has passed with this release."""
    smoke_test = me.facts.store.states[lock.id].smoke if me.facts else None
    return smoke_test.outbound_attempts if smoke_test else None


def stage_host(run: Run, me: HostRun, lock: Lock) -> bool:
    """The whole way of a release onto a host. Every step proves bytes; the ledger adds them up in the end."""
    transport = run.transport
    ensure_tool(run, me)
    transport.prepare(run, me)
    bring_signatures(run, me, lock)
    checked = hash_again(run, me, lock) if me.plan and me.plan.verify else None
    transport.finish_earlier(run, me)
    user = me.settings.push_user
    ready = expect(call(run, me, "store", "ready", user=user, document=lock.document))
    sent = transport.send(run, me, ready["missing"])
    admitted = expect(call(run, me, "store", "admit", user=user, document=lock.document, deadline=3600))
    check_ledger(me, lock, ready, sent, admitted["admitted"])
    me.report.verified = admitted["verified"]
    expect(call(run, me, "engine", "load", document=lock.document, deadline=3600))
    if not smoke_host(run, me, lock):
        return False
    if checked and (checked["damaged"] or checked["wrong"] or not admitted["verified"]):
        check_repair(run, me, lock)
    return check_switch(run, me, lock)


def hash_again(run: Run, me: HostRun, lock: Lock) -> Mapping[str, Any]:
    """Hash what is there of the release. What is damaged is named, leaves the store, and is pushed again."""
    checked = expect(call(run, me, "store", "verify", document=lock.document, deadline=3600))
    damaged = checked["damaged"].values()
    for blob in damaged:
        wrong = f"damaged: {blob['what']}; expected sha256 {blob['expected']}, found {blob['found']}"
        me.target.log_styled(f"{wrong}; it is pushed again", fg="red", log_func=logger.error)
    me.report.repaired = sorted(blob["what"] for blob in damaged)
    return checked


def check_repair(run: Run, me: HostRun, lock: Lock) -> None:
    """Hash everything once more after a repair. Raises Refused where something is damaged again."""
    after = expect(call(run, me, "store", "verify", document=lock.document, deadline=3600))
    if wrong := wrong_in(after):
        found = "; ".join(wrong[:5])
        raise Refused(me.name, "is damaged again", "every blob as locked", found, "look at its disk")
    me.report.verified = after["verified"]


def check_switch(run: Run, me: HostRun, lock: Lock) -> bool:
    """Stop the rollout here, before any host is switched, where this host's switch would be refused."""
    ensure_tool(run, me)
    me.recreate = could_switch(run, me, lock)["recreate"]
    me.evidence.add(Evidence.STAGED)
    me.says(State.READY)
    return True


def smoke_host(run: Run, me: HostRun, lock: Lock) -> bool:
    goldens, settings = run.goldens, me.settings
    with_goldens = goldens.belong_to(lock)
    text = compose.override(lock, settings, run.tool.path(settings.model_store), with_goldens)
    texts = {"compose.override.yaml": text}
    if with_goldens:
        texts["goldens.json"] = goldens.text()
    if me.facts is None or me.facts.stack is None:
        raise Refused(me.name, "could not be inspected", next="tasks/preflight.py")
    show_smoke(me, smoke(run, me, lock, texts, f"{settings.stack}/{me.facts.stack.files[0]}"))
    if with_goldens:
        return True
    accept = f"tasks/lock.py --data accept_goldens_from={me.name}"
    if not run.bastion.in_limit:
        accept = f"the same with --limit {run.bastion.name} too, which proves the release and makes them"
    why = f"passed its smoke test, but there are no goldens to compare with. Next: {accept}"
    return fail(me, why, State.NOT_PROVEN)


def check_ledger(me: HostRun, lock: Lock, ready: Mapping[str, Any], sent: Sent, admitted: int) -> None:
    """sent + there already = the lock's total, or the host fails: an exit code of 0 proves no byte.

    ready: the answer of `store ready`: {"missing", "partial"} as {sha256: size}. admitted: bytes.
    """
    total, need = sum(lock.blobs().values()), sum(ready["missing"].values())
    whole = sum(size for name, size in ready["partial"].items() if size == ready["missing"][name])
    arrived = sent.moved + sent.matched + whole
    if arrived < need or total - need + admitted != total:
        found = f"{sent.moved} sent, {sent.matched + whole} resumed, {total - need} there, {admitted} admitted"
        expected = f"{total} bytes in the lock"
        raise Refused(me.name, "the ledger does not add up", expected, found, "the deploy again")
    me.report.there_bytes, me.report.moved_bytes, me.report.sent_bytes = total - sent.moved, sent.moved, sent.wire
