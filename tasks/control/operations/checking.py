"""What is there: preflight, status, and hashes taken again. None of it changes what a host serves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, operation

from tasks.control.host_run import Evidence, HostRun
from tasks.control.rules import compose
from tasks.control.rules.drift import confirmed_override, drift, lock_on_host
from tasks.control.rules.states import State
from tasks.control.run import Run
from tasks.control.summaries import describe_lease, show_proof
from tasks.control.tool import call, ensure_tool, expect, fail, guarded
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock


@operation(is_idempotent=False)
def preflight(run: Run, problems: Sequence[str]) -> Any:
    """Fail this host with everything that it is missing; without any, it is fit."""
    me = run.hosts[host.name]
    if problems:
        me.says(State.UNFIT, "; ".join(problems))
        yield FunctionCommand(say_no, (problems,), {})
        return
    me.says(State.FIT)
    me.evidence.add(Evidence.FIT)
    host.noop("fit for the release")


def say_no(state: Any, host: Any, problems: Sequence[str]) -> bool:
    for problem in problems:
        host.log_styled(problem, fg="red", log_func=logger.error)
    return False


@operation(is_idempotent=False)
def status(run: Run, lock: Lock | None) -> Any:
    """What this host serves, and how that strays from what was confirmed. Drift and a mixed fleet are failures.

    lock: the one in git, for what a deploy would change; or None.
    """
    me = run.hosts[host.name]
    facts = me.facts
    if facts is None:
        me.says(State.UNREADABLE, "could not be inspected: run again with -v")
        yield FunctionCommand(say_no, (["could not be inspected"],), {})
        return
    current = facts.store.current
    show_proof(me, current)
    if lock and lock.id == current:
        asked = compose.override(lock, me.settings, run.tool.path(me.settings.model_store), True)
        me.report.other_settings = confirmed_override(facts, current) != asked
    if switching := being_switched(me):
        me.says(State.SWITCHING, switching)
        host.noop(State.SWITCHING.label)
        return
    found = drift(facts, me.settings) + unfinished_switch(me) + mixed_fleet(run)
    me.says(State.DRIFTED if found else State.IN_SYNC if current else State.EMPTY, "; ".join(found))
    if found:
        yield FunctionCommand(say_no, (found,), {})
    else:
        host.noop(me.state.label)


def being_switched(me: HostRun) -> str:
    """What switches this host now, or a switch that ends by itself; "" where there is none."""
    store = me.facts.store if me.facts else None
    if store is None or not store.pending or store.frozen or (store.lease is None and not store.switching):
        return ""
    to, back = str(store.pending.get("to"))[:12], str(store.pending.get("from") or "nothing")[:12]
    if store.lease is None:
        return f"to {to}, which no rollout holds any more: it ends by itself, most likely back in {back}"
    return f"to {to}, by lease {describe_lease(store.lease).partition(',')[0]}"


def unfinished_switch(me: HostRun) -> list[str]:
    """A switch that was cut off, and that nobody ends now, as sentences."""
    pending = me.facts.store.pending if me.facts else None
    if not pending:
        return []
    to = pending.get("to")
    return [f"a switch to {str(to)[:12]} is pending; the next run, or a reboot, ends it" if to else str(pending["why"])]


def mixed_fleet(run: Run) -> list[str]:
    """How the fleet answers in more than one embedding space, as sentences. While a rollout holds hosts, it may.

    What is unknown of one host is told of that host.
    """
    if any(each.facts and each.facts.store.lease is not None for each in run.targets):
        return []
    spaces = Counter(each.space for each in run.targets if each.facts and each.space not in ("none", "unknown"))
    counts = ", ".join(f"{count} in {space}" for space, count in sorted(spaces.items()))
    return [f"the fleet answers in {len(spaces)} embedding spaces ({counts})"] if len(spaces) > 1 else []


@operation(is_idempotent=True)
def verify(run: Run) -> Any:
    """Hash the bytes of the current release again, all or a random sample. Damage is named, and fails this host."""
    me = run.hosts[host.name]
    me.says(State.WOULD_HASH)
    yield guarded(me, lambda: verify_host(run, me))


def verify_host(run: Run, me: HostRun) -> bool:
    if me.facts is None:
        raise Refused(me.name, "could not be inspected", next="run again with -v")
    current = me.facts.store.current
    if not current:
        lost = drift(me.facts, me.settings)
        me.says(State.EMPTY)
        return fail(me, "; ".join(lost), State.DRIFTED) if lost else True
    lock = lock_on_host(me.facts, current)
    if lock is None:
        raise Refused(f"{me.name}: releases/{current[:12]}", "is missing or not readable", next="deploy.py")
    ensure_tool(run, me)
    sample = me.settings.sample
    found = expect(call(run, me, "store", "verify", sample=sample, document=lock.document, deadline=14400))
    me.report.release, me.report.hashed_bytes = current, found["bytes"]
    me.says(State.INTACT)
    wrong = [f"{blob['what']} is damaged" for blob in found["damaged"].values()]
    wrong += found["wrong"] + [f"{name} is missing" for name in found["missing"]]
    if wrong:
        return fail(me, f"{'; '.join(wrong[:10])}. Next: deploy.py, which repairs it", State.DAMAGED)
    return True
