"""One rollout at a time: a lease on every target host, all or none, before anything is changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pyinfra import host
from pyinfra.api import operation

from tasks.control.host_run import Evidence, HostRun
from tasks.control.rules.states import State
from tasks.control.run import Run
from tasks.control.summaries import describe_lease
from tasks.control.tool import call, command, ensure_tool, expect, guarded, options
from tasks.control.version import version
from tasks.control.who import who
from tasks.shared.errors import Refused


@operation(is_idempotent=True)
def lease(run: Run, release: str, why: str, needed: Callable[[], bool] = lambda: True) -> Any:
    """Hold this host for this run. `needed` says, when its time has come, whether the run changes anything at all."""
    me = run.hosts[host.name]
    if not needed():
        me.evidence.add(Evidence.LEASED)
        host.noop("nothing will change: no lease is needed")
        return
    yield guarded(me, lambda: take(run, me, release, why), phase="lease")


def take(run: Run, me: HostRun, release: str, why: str) -> bool:
    ensure_tool(run, me)
    about = options(
        store=me.settings.model_store,
        id=run.lease_id,
        who=f"{who()} with hf-offline {version()}",
        release=release,
        why=why,
    )
    run.sessions.revive(me.target)
    answer = run.leases.take(me.target, command(run, me, "lease", "hold", *about))
    try:
        current = expect(json.loads(answer))["current"]
    except ValueError:
        raise Refused(me.name, "gives no lease", found=answer or "no answer") from None
    inspected = me.facts.store.current if me.facts else None
    if current != inspected:
        what = "was switched since it was inspected"
        raise Refused(me.name, what, str(inspected), str(current), "the same again")
    me.evidence.add(Evidence.LEASED)
    me.lease = run.lease_id
    return True


@operation(is_idempotent=True)
def unlock(run: Run) -> Any:
    """End the lease that the operator names. The host notes it in its journal."""
    me = run.hosts[host.name]
    held = me.facts.store.lease if me.facts else None
    if me.facts and held is None:
        me.says(State.UNLOCKED, "nobody holds it")
        host.noop("nobody holds this host")
        return
    if held is not None and not run.is_executing():
        mine = held.get("id") == me.settings.lease
        found = describe_lease(held)
        me.says(
            *((State.WOULD_UNLOCK, f"would take {found}") if mine else (State.FAILED, f"has another lease: {found}"))
        )
    yield guarded(me, lambda: end_lease(run, me))


def end_lease(run: Run, me: HostRun) -> bool:
    ensure_tool(run, me)
    taken = expect(call(run, me, "lease", "unlock", id=me.settings.lease, who=who())).get("lease")
    me.report.lease = None
    gone = f"took {taken}. Whatever held it stops before its next switch"
    me.says(State.UNLOCKED, gone if taken else "nobody holds it")
    return True
