"""One rollout at a time: a lease on every target host, all or none, before anything is changed."""

from __future__ import annotations

import json
import secrets
from functools import cache
from typing import Any

from pyinfra import host, state
from pyinfra.api import QuoteString, StringCommand, operation

from tasks.control import drift as standing
from tasks.control import ssh as fleet
from tasks.control.reporting import recorder as report
from tasks.control.settings import Settings
from tasks.control.tool import call, ensure_tool, expect, guarded, options, tool_path
from tasks.shared.errors import Refused


@cache
def lease_id() -> str:
    """This run's own, in every host's lease.json."""
    return f"x{secrets.token_hex(4)}"  # a letter first: pyinfra reads `--data lease=12345678` as a number


@operation(is_idempotent=True)
def lease(settings: Settings, release: str, why: str, needed: Any = lambda: True):
    """Hold this host for this run; `needed` says, when its time has come, whether the run changes anything at all."""
    if not needed():
        report.record(host.name, leased=True)
        host.noop("nothing will change: no lease is needed")
        return

    def work(host: Any) -> bool:
        ensure_tool(host)
        words = options(store=settings.model_store, id=lease_id(), who=report.who(), release=release, why=why)
        tool = StringCommand("python3", QuoteString(tool_path(settings)), "lease hold")
        answer = fleet.leases.take(host, StringCommand(tool, *[QuoteString(word) for word in words]))
        try:
            current = expect(json.loads(answer))["current"]
        except ValueError:
            raise Refused(host.name, "gives no lease", found=answer or "no answer") from None
        seen = report.RESULTS[host.name]["seen"]["store"]["current"]
        if current != seen:
            raise Refused(host.name, "was switched since it was looked at", str(seen), str(current), "the same again")
        report.record(host.name, leased=True, lease=lease_id())
        return True

    yield guarded(work, phase="lease")


@operation(is_idempotent=True)
def unlock(settings: Settings):
    """End the lease that the operator names; journaled on the host."""
    seen = report.RESULTS[host.name]["seen"]
    if seen and seen["store"]["lease"] is None:
        report.record(host.name, state="unlocked", why="nobody holds it")
        host.noop("nobody holds this host")
        return
    if not state.is_executing and seen:
        found = standing.leased(seen["store"]["lease"])
        known = {"state": "would unlock", "why": f"would take {found}"}
        wrong = {"state": "failed", "why": f"has another lease: {found}"}
        report.record(host.name, **(known if seen["store"]["lease"].get("id") == settings.lease else wrong))

    def work(host: Any) -> bool:
        ensure_tool(host)
        taken = expect(call(host, "lease", "unlock", id=settings.lease, who=report.who())).get("lease")
        why = f"took {taken}. Whatever held it stops before its next switch" if taken else "nobody holds it"
        report.record(host.name, state="unlocked", lease=None, why=why)
        return True

    yield guarded(work)
