"""The switch of a host's service from one release to another: forward, rechecked, withdrawn, and rolled back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyinfra import host
from pyinfra.api import operation

from tasks.control.host_run import Evidence, HostRun, Serving
from tasks.control.operations.switch_calls import mark_confirmed, recheck_host, restore_override, switch
from tasks.control.rules import compose
from tasks.control.rules.plan import rollback_target, what_changes, why_not_active
from tasks.control.rules.states import State
from tasks.control.run import Run
from tasks.control.summaries import show_proof
from tasks.control.tool import call, could_switch, ensure_tool, expect, fail, guarded, wrong_in
from tasks.shared.errors import Refused, describe
from tasks.shared.lock import Lock
from tasks.shared.spaces import embedding_space


@operation(is_idempotent=True)
def activate(run: Run) -> Any:
    """Switch the service to the release, as the host's plan says, by one program there that reverts by itself."""
    me, lock, plan = run.hosts[host.name], run.release, run.hosts[host.name].plan
    if me.state is State.UNFIT or plan is None or me.facts is None:
        host.noop("unfit")
        return
    text = compose.override(lock, me.settings, run.tool.path(me.settings.model_store), True)
    if not plan.switch and not me.recreate:
        repaired = bool(me.report.moved_bytes or me.report.repaired)
        if run.is_executing() or me.state is not State.WOULD_CHANGE:
            mark_confirmed(me, as_inspected(me, lock, text), State.ACTIVE if repaired else State.UNCHANGED)
        host.noop("the service runs this release")
        return
    me.report.changes = what_changes(me.facts, me.settings, lock, text) or None
    if not run.is_executing():
        me.says(State.WOULD_CHANGE, me.report.changes or plan.describe())
    yield guarded(me, lambda: switch(run, me, lock, text, why="deploy"), phase="activate")


def as_inspected(me: HostRun, lock: Lock, override: str) -> Serving:
    """What serves on a host that needs no switch, as the inspection saw it."""
    if me.facts is None or me.facts.container is None or me.facts.stack is None:
        raise Refused(me.name, "could not be inspected", next="tasks/status.py")
    container, networks = me.facts.container, sorted(me.facts.stack.networks)
    environment = compose.environment_of(override, me.settings.service)
    return Serving(lock.id, container.id, container.started, networks, environment)


@operation(is_idempotent=True)
def recheck(run: Run) -> Any:
    """Ask a host that was confirmed in this run whether the same container still serves. Hosts without a switch, too:
    they were inspected before the staging, which can take hours."""
    me = run.hosts[host.name]
    if not run.is_executing() or not me.has(Evidence.CONFIRMED) or me.lease != run.lease_id:
        host.noop("not confirmed, or nothing changes in this run")
        return
    yield guarded(me, lambda: recheck_host(run, me), phase="recheck")


@operation(is_idempotent=True)
def withdraw(run: Run, hosts: Sequence[str]) -> Any:
    """Take this host back to what it served before, if too many hosts failed, or if it regressed itself."""
    me, failed = run.hosts[host.name], sorted(run.failed())
    too_many = len(failed) > run.settings.max_failed_hosts and me.name in hosts
    if not (me.regressed or too_many) or not me.switched or me.taken_back:
        host.noop("nothing to withdraw")
        return
    why = f"withdrawn: {me.why if me.regressed else ', '.join(failed) + ' failed'}"
    yield guarded(me, lambda: take_back(run, me, why), phase="withdraw", good=State.WITHDRAWN)


def take_back(run: Run, me: HostRun, why: str) -> bool:
    """Go back to the release from before, and fail this host: a withdrawal is a failure."""
    if me.facts is None:
        raise Refused(me.name, "could not be inspected", next="tasks/status.py")
    store = me.facts.store
    me.evidence.discard(Evidence.CONFIRMED)
    me.taken_back = True
    if not store.current:
        return fail(me, f"{why}; it served nothing before, so it stays", State.NOT_WITHDRAWN)
    try:
        lock, override = rollback_target(me.facts, me.settings, store.current)
        restore_override(run, me, lock, override)
        # Not `previous`: a rollback must not lead to what the fleet has just turned down.
        back = switch(run, me, lock, override, why=why, previous=store.previous or lock.id)
    except Refused as no:
        return fail(me, f"{why}, and going back failed: {describe(no.error)}", State.NOT_WITHDRAWN)
    me.evidence.discard(Evidence.CONFIRMED)
    if back:
        return fail(me, why, State.WITHDRAWN)
    if me.state is State.ACTIVE and me.not_readmitted:
        return fail(me, f"{why}; {me.why}", State.WITHDRAWN)
    stays = me.state if me.state in (State.FROZEN, State.UNKNOWN) else State.NOT_WITHDRAWN
    return fail(me, f"{why}, and going back failed: {me.why}", stays)


# ---------------------------------------------------------------------------------------------------------- rollback


@operation(is_idempotent=True)
def check_target(run: Run) -> Any:
    """The release that this host would go back to is here, every byte of it hashed, and its image is loaded."""
    me = run.hosts[host.name]
    if not run.is_executing():
        try:
            aim(me)
        except Refused as no:
            fail(me, str(no))
    yield guarded(me, lambda: prove_target(run, me), phase="check")


def target_of(me: HostRun) -> tuple[Lock, str]:
    if me.facts is None or not me.facts.docker:
        raise Refused(me.name, "cannot be inspected, or has no Docker Engine", next="tasks/preflight.py")
    return rollback_target(me.facts, me.settings, me.goes_to or me.settings.release)


def aim(me: HostRun) -> None:
    """Before a rollback, and with --dry: where the host would go."""
    lock, override = target_of(me)
    me.goes_to, me.report.to_space = lock.id, embedding_space(lock)
    there = me.facts is not None and not why_not_active(me.facts, me.settings, lock, override)
    me.says(State.UNCHANGED if there else State.WOULD_CHANGE, "" if there else f"to {lock.short}")


def prove_target(run: Run, me: HostRun) -> bool:
    lock, override = target_of(me)
    ensure_tool(run, me)
    expect(call(run, me, "signed", "check", release=lock.id, deadline=300))
    found = expect(call(run, me, "store", "verify", document=lock.document, deadline=3600))
    if wrong := wrong_in(found):
        what, fix = f"release {lock.short} is not intact", "deploy.py of that release's lock, which repairs it"
        raise Refused(me.name, what, "every blob as locked", "; ".join(wrong[:5]), fix)
    expect(call(run, me, "engine", "load", document=lock.document, deadline=3600))
    restore_override(run, me, lock, override)
    could_switch(run, me, lock)
    show_proof(me, lock.id)
    me.report.verified, me.report.to_space = found["verified"], embedding_space(lock)
    me.goes_to, me.made_of = lock.id, lock.summary()
    me.evidence.add(Evidence.INTACT)
    me.says(State.READY)
    return True


@operation(is_idempotent=True)
def one_target(run: Run) -> Any:
    """Hosts whose previous releases differ, as after a rollout that stopped half-way, go back only where the operator says."""
    me = run.hosts[host.name]
    targets = {each.name: (each.goes_to or "")[:12] for each in run.targets}
    if len(set(targets.values())) < 2 or "" in targets.values():  # in a --dry the last host knows of all
        me.evidence.add(Evidence.AGREED)
        host.noop("every host goes back to the same release")
        return
    where = ", ".join(f"{name} to {target}" for name, target in targets.items())
    no = Refused("rollback", "would take hosts to different releases", "one", where, "--data release=ID")
    if not run.is_executing():
        for each in run.targets:
            each.says(State.FAILED, str(no))
    yield guarded(me, lambda: fail(me, str(no)))


@operation(is_idempotent=True)
def roll_back(run: Run) -> Any:
    """The way forward, backwards: the same switch, probe, soak and confirmation."""
    me = run.hosts[host.name]
    yield guarded(me, lambda: roll_back_host(run, me), phase="activate")


def roll_back_host(run: Run, me: HostRun) -> bool:
    lock, override = target_of(me)
    if me.facts is not None and not why_not_active(me.facts, me.settings, lock, override):
        mark_confirmed(me, as_inspected(me, lock, override), State.UNCHANGED)
        return True
    # `previous` is where it goes: the same command again stays there, and does not come forward.
    return switch(run, me, lock, override, why="rollback", previous=lock.id)
