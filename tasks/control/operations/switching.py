"""The switch of a host's service from one release to another, forward and back."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from pyinfra import host, logger, state
from pyinfra.api import operation

from tasks.control import compose
from tasks.control import drift as standing
from tasks.control import ssh as fleet
from tasks.control.operations.leasing import lease_id
from tasks.control.reporting import recorder as report
from tasks.control.settings import Settings
from tasks.control.tool import (
    broken,
    call,
    can_switch,
    ensure_tool,
    expect,
    fail,
    guarded,
    probe,
    put,
    service,
    tool_path,
)
from tasks.shared.errors import Refused, describe
from tasks.shared.lock import Lock
from tasks.shared.spaces import embedding_space

NOT_READMITTED = ", not readmitted"  # what remote/switch.py says of a host whose `readmit` failed
SERVING = ("container", "started", "networks")  # by what a container is known again
AWAY = f"active{NOT_READMITTED}"


@operation(is_idempotent=True)
def activate(lock: Lock, settings: Settings):
    """Switch the service to the release by one program on the host, which reverts by itself when it is not healthy."""
    known = report.RESULTS[host.name]
    text = compose.override(lock, settings, tool_path(settings), True)
    if known["state"] == "unfit":
        host.noop("unfit")
        return
    if standing.active(known["seen"], settings, lock, text) and not known.get("recreate"):
        changed = known.get("moved_bytes") or known.get("repaired")
        if not report.would_change(host.name):
            confirmed(host, lock, text, looked(known["seen"]), "active" if changed else "unchanged")
        host.noop("the service runs this release")
        return
    what = standing.changes(known["seen"], settings, lock, text)
    report.record(host.name, changes=what)
    if not state.is_executing:
        report.record(host.name, state="would change", why=what)
    yield guarded(lambda host: switch(host, settings, lock, text, why="deploy"), phase="activate")


@operation(is_idempotent=True)
def stay(settings: Settings):
    """What this run has confirmed serves on: asked of every host so far, before the next wave and at the end.

    Also of those that needed no switch: they were looked at before the staging, which can take hours.
    """
    known = report.RESULTS[host.name]
    if not state.is_executing or not known.get("confirmed") or known.get("lease") != lease_id():
        host.noop("not confirmed, or nothing changes in this run")
        return

    def work(host: Any) -> bool:
        release, asked = known["serving"]
        more = {"document": json.dumps(asked), "release": release, "deadline": 120}
        for _ in range(2):  # a connection may break once
            answer = call(host, "switch", "stays", **more, **service(host, settings))
            if there := answer.get("answered", True):
                break
        if answer.get("ok"):
            return True
        why = f"does not serve on as it was confirmed: {describe(answer.get('error') or {})}"
        fail(host, why, "failed" if there else "unknown")
        report.record(host.name, confirmed=False, fell=True, release=None, space="unknown", container=None)
        return False

    yield guarded(work, phase="stay")


@operation(is_idempotent=True)
def withdraw(settings: Settings, hosts: list[str]):
    """This host, which was switched in this run, goes back to what it served before: too many failed, or it fell itself."""
    failed, known = sorted(fleet.failed()), report.RESULTS[host.name]
    meant = known.get("fell") or (len(failed) > settings.max_failed_hosts and host.name in hosts)
    if not meant or not known.get("switched") or known.get("taken_back"):
        host.noop("nothing to withdraw")
        return
    why = f"withdrawn: {known['why'] if known.get('fell') else ', '.join(failed) + ' failed'}"

    def work(host: Any) -> bool:
        store = known["seen"]["store"]
        report.record(host.name, confirmed=False, taken_back=True)
        if not store["current"]:
            return fail(host, f"{why}; it served nothing before, so it stays", "not withdrawn")
        try:
            lock, text = standing.target(known["seen"], settings, store["current"])
            bring_back(host, settings, lock, text)
            # Not `previous`: a rollback must not lead to what the fleet has just turned down.
            back = switch(host, settings, lock, text, why=why, previous=store["previous"] or lock.id)
        except Refused as no:
            return fail(host, f"{why}, and going back failed: {describe(no.error)}", "not withdrawn")
        report.record(host.name, confirmed=False)
        if back:
            return fail(host, why, "withdrawn")
        if known["state"] == AWAY:
            return fail(host, f"{why}; {known['why']}", f"withdrawn{NOT_READMITTED}")
        stays = known["state"] if known["state"] in ("frozen", "unknown") else "not withdrawn"
        return fail(host, f"{why}, and going back failed: {known['why']}", stays)

    yield guarded(work, phase="withdraw", well="withdrawn")


@operation(is_idempotent=True)
def check_target(settings: Settings):
    """The release that this host would go back to is here, every byte of it hashed, and its image is loaded."""
    seen = report.RESULTS[host.name]["seen"]

    def aim() -> tuple[Lock, str]:
        if not seen or not seen["docker"]:
            raise Refused(host.name, "cannot be looked at, or has no Docker Engine", next="tasks/preflight.py")
        return standing.target(seen, settings, settings.release)

    def work(host: Any) -> bool:
        lock, text = aim()
        ensure_tool(host)
        document = json.dumps(lock.document)
        expect(call(host, "signed", "check", release=lock.id, deadline=300))
        found = expect(call(host, "store", "verify", document=document, deadline=3600))
        if wrong := broken(found):
            what = f"release {lock.short} is not intact"
            mend = "deploy.py of that release's lock, which repairs it"
            raise Refused(host.name, what, "every blob as locked", "; ".join(wrong[:5]), mend)
        expect(call(host, "engine", "load", document=document, deadline=3600))
        bring_back(host, settings, lock, text)
        expect(can_switch(host, settings, lock))
        report.record(host.name, **{**standing.proof(seen, lock.id), "verified": found["verified"]})
        report.record(host.name, intact=True, state="ready", target=lock.id)
        report.record(host.name, to_space=embedding_space(lock), contents=lock.summary())
        return True

    if not state.is_executing:
        try:
            lock, text = aim()
            there = standing.active(seen, settings, lock, text)
            said = {"state": "unchanged"} if there else {"state": "would change", "why": f"to {lock.short}"}
            report.record(host.name, **said, target=lock.id, to_space=embedding_space(lock))
        except Refused as no:
            fail(host, str(no))
    yield guarded(work, phase="check")


@operation(is_idempotent=True)
def one_target(hosts: list[str]):
    """Hosts whose previous releases differ (a rollout that stopped half-way) go back only where the operator says."""
    targets = {name: report.RESULTS[name].get("target", "")[:12] for name in hosts}
    if len(set(targets.values())) < 2 or "" in targets.values():  # in a --dry the last host knows of all
        report.record(host.name, agreed=True)
        host.noop("every host goes back to the same release")
        return
    where = ", ".join(f"{name} to {target}" for name, target in targets.items())
    no = Refused("rollback", "would take hosts to different releases", "one", where, "--data release=ID")

    def work(host: Any) -> bool:
        raise no

    for name in [] if state.is_executing else hosts:
        report.record(name, state="failed", why=str(no))
    yield guarded(work)


@operation(is_idempotent=True)
def roll_back(settings: Settings):
    """Forward's own code path, backwards: the same switch, probe, soak and confirmation."""
    known = report.RESULTS[host.name]

    def work(host: Any) -> bool:
        seen, target = known["seen"], known["target"]
        lock, text = standing.target(seen, settings, target)
        if standing.active(seen, settings, lock, text):
            confirmed(host, lock, text, looked(seen), "unchanged")
            return True
        # `previous` is where it goes: the same command again stays there, and does not come forward.
        return switch(host, settings, lock, text, why="rollback", previous=target)

    yield guarded(work, phase="activate")


def bring_back(target: Any, settings: Settings, lock: Lock, override: str) -> None:
    """The override that a release was confirmed with: staging it again with other settings has replaced that."""
    path = f"{settings.model_store}/state/{lock.id}/compose.override.yaml"
    if not put(target, path, override.encode()):
        raise Refused(target.name, "cannot write the override", next=f"look at {path}")


def switch(target: Any, settings: Settings, lock: Lock, override: str, why: str, previous: str | None = None) -> bool:
    """One switch, by the program on the host; then the confirmation over a new connection, or the host goes back.

    `previous`: what the host's record of that name becomes, where it is not the release that is left.
    """
    known = report.RESULTS[target.name]
    # Its own deadline to get healthy, and to go back if it must, with a drain before and a readmit after.
    within, back = settings.health_deadline, max(settings.health_deadline, 300) + 300
    if known.get("lease") and not fleet.leases.held(target):
        what = "lost its lease: somebody took it, or the connection broke"
        raise Refused(target.name, what, known["lease"], "none", "tasks/status.py, then the same again")
    if known["seen"]["store"]["switching"]:
        most = f"at most {settings.soak + settings.confirm_deadline + back} s"
        waits = f"an earlier run was switching it when looked at: waits for the end of that, {most}"
        target.log_styled(waits, fg="yellow", log_func=logger.warning)
    document = {
        "who": report.who(),
        "why": why,
        "probe": probe(settings),
        "expect_env": compose.environment_of(override, settings.service),
        "drain": settings.drain,
        "readmit": settings.readmit,
    }
    answer = call(
        target,
        "switch",
        "activate",
        document=json.dumps(document),
        deadline=within + settings.soak + back + 600,
        release=lock.id,
        **service(target, settings),
        within=within,
        soak=settings.soak,
        confirm=settings.confirm_deadline,
        recreate=bool(known.get("recreate") or (known["seen"].get("container") or {}).get("torn")),
        previous=previous,
        lease=known.get("lease"),
    )
    if answer.get("token") and answer.get("state") == "awaiting":
        answer = confirm(target, answer["token"], back)
    became = answer.get("state") or ("failed" if answer.get("answered", True) else "unknown")
    # What was looked at before is no more: the report says what serves now, or nothing where that is not known.
    if became in ("active", AWAY):
        report.record(
            target.name, switched=True, release=lock.id, space=embedding_space(lock), since=report.stamp(time.time())
        )
        measured = {"switch_seconds": answer.get("seconds"), "served_cosine": answer.get("cosine")}
        report.record(target.name, container=None, **measured)
    elif became in ("frozen", "unknown"):
        report.record(target.name, release=None, space="unknown", since=None, container=None)
    if not answer.get("ok"):
        if became == AWAY:
            report.record(target.name, fell=True)
        return fail(target, describe(answer.get("error") or {}), became)
    confirmed(target, lock, override, {key: answer.get(key) for key in SERVING}, "active")
    return True


def looked(seen: Mapping[str, Any]) -> dict[str, Any]:
    """What serves, as a look at the host saw it."""
    container = seen["container"]
    return dict(zip(SERVING, (container["id"], container["since"], sorted(seen["stack"]["networks"])), strict=True))


def confirmed(target: Any, lock: Lock, override: str, serving: Mapping[str, Any], state_word: str) -> None:
    """This host counts as confirmed: with that container, of that release, in that environment."""
    expected = compose.environment_of(override, report.RESULTS[target.name]["settings"].service)
    asked = {**serving, "expect_env": expected}
    report.record(target.name, confirmed=True, state=state_word, serving=(lock.id, asked))


def confirm(target: Any, token: str, back: int) -> dict[str, Any]:
    """Confirm over a new connection, and hear how the activation ended; `back`: seconds that going back may take."""
    told, answer = False, {}
    for _ in range(2):  # a connection may fail, an answer get lost; asking again does no harm
        try:
            with fleet.fresh(target):
                told = True
                answer = call(target, "switch", "confirm", token=token, within=back + 30, deadline=back + 60)
        except Refused as no:
            answer = {"ok": False, "error": no.error}
        if "state" in answer:
            return answer
    if not told:
        return {**answer, "state": "unknown"}  # it is about to put the old release back
    found = describe(answer.get("error") or {})
    what = "was told that the new release is confirmed; how that ended is not known"
    lost = Refused(target.name, what, "its answer", found, "tasks/status.py, then the same again")
    return {"ok": False, "state": "unknown", "error": lost.error}
