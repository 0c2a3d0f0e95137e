"""What is there: preflight, status, and hashes taken again. None of it changes what a host serves."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, operation

from tasks.control import compose
from tasks.control import drift as standing
from tasks.control import ssh as fleet
from tasks.control.reporting import recorder as report
from tasks.control.settings import Settings
from tasks.control.tool import call, ensure_tool, expect, fail, guarded, tool_path
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock


@operation(is_idempotent=False)
def preflight(problems: list[str]):
    """Fail this host with everything that it lacks; else it is fit."""
    if problems:
        report.record(host.name, state="unfit", why="; ".join(problems))
        yield FunctionCommand(tell, (problems,), {})
        return
    report.record(host.name, fit=True, state="fit")
    host.noop("fit for the release")


def tell(state: Any, host: Any, problems: list[str]) -> bool:
    for problem in problems:
        host.log_styled(problem, fg="red", log_func=logger.error)
    return False


@operation(is_idempotent=False)
def status(settings: Settings, lock: Lock | None):
    """What this host serves, and how it strays from what was confirmed; drift and a mixed fleet are failures.

    `lock`: that of git, for what a deploy would change.
    """
    seen = report.RESULTS[host.name]["seen"]
    if not seen:
        report.record(host.name, state="unreadable", why="could not be looked at: run again with -v")
        yield FunctionCommand(tell, (["could not be looked at"],), {})
        return
    found = standing.drift(seen, settings)
    current = seen["store"]["current"]
    report.record(host.name, **standing.proof(seen, current))
    if lock and lock.id == current:
        asked = compose.override(lock, settings, tool_path(settings), True)
        report.record(host.name, other_settings=standing.confirmed(seen, current) != asked)
    pending, lease = seen["store"]["pending"], seen["store"]["lease"]
    if pending and (lease is not None or seen["store"]["switching"]) and not seen["store"]["frozen"]:
        back = str(pending.get("from") or "nothing")[:12]
        alone = f"which no rollout holds any more: it ends by itself, most likely back in {back}"
        by = alone if lease is None else f"by lease {standing.leased(lease).partition(',')[0]}"
        why = f"to {str(pending.get('to'))[:12]}, {by}"
        report.record(host.name, state="switching", why=why)
        host.noop("switching")
        return
    if pending:
        to = pending.get("to")
        what = f"a switch to {str(to)[:12]} is pending; the next run, or a reboot, ends it"
        found.append(what if to else str(pending.get("why")))
    strange = mixed()
    looks = (report.RESULTS[each.name].get("seen") or {} for each in fleet.targets())
    if strange and all(each.get("store", {}).get("lease") is None for each in looks):
        found.append(strange)
    state_word = "drifted" if found else "in order" if current else "empty"
    report.record(host.name, state=state_word, why="; ".join(found))
    if found:
        yield FunctionCommand(tell, (found,), {})
    else:
        host.noop(state_word)


def mixed() -> str:
    """ "" or how the fleet answers in more than one embedding space; what is unknown is told of its own host."""
    seen = [report.RESULTS[each.name].get("seen") for each in fleet.targets()]
    spaces = Counter(space for each in seen if each and (space := standing.space_of(each)) not in ("none", "unknown"))
    counts = ", ".join(f"{count} in {space}" for space, count in sorted(spaces.items()))
    return f"the fleet answers in {len(spaces)} embedding spaces ({counts})" if len(spaces) > 1 else ""


@operation(is_idempotent=True)
def verify(settings: Settings):
    """Hash the bytes of the current release again, all of them or a sample; damage is named, and fails this host."""
    report.record(host.name, state="would hash")

    def work(host: Any) -> bool:
        seen = report.RESULTS[host.name]["seen"]
        if not seen:
            raise Refused(host.name, "could not be looked at", next="run again with -v")
        current = seen["store"]["current"]
        if not current:
            lost = standing.drift(seen, settings)
            report.record(host.name, state="empty")
            return fail(host, "; ".join(lost), "drifted") if lost else True
        lock = standing.locked_here(seen, current)
        if lock is None:
            raise Refused(f"{host.name}: releases/{current[:12]}", "is missing or not readable", next="deploy.py")
        ensure_tool(host)
        document = json.dumps(lock.document)
        found = expect(call(host, "store", "verify", sample=settings.sample, document=document, deadline=14400))
        report.record(host.name, release=current, hashed_bytes=found["bytes"], state="intact")
        wrong = [f"{blob['what']} is damaged" for blob in found["damaged"].values()]
        wrong += found["wrong"] + [f"{name} is missing" for name in found["missing"]]
        if wrong:
            return fail(host, f"{'; '.join(wrong[:10])}. Next: deploy.py, which repairs it", "damaged")
        return True

    yield guarded(work)
