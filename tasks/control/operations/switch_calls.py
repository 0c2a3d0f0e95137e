"""One switch on one host: the program there does it, and a new connection confirms it, or the host goes back by itself."""

from __future__ import annotations

import time
from typing import Any

from pyinfra import logger

from tasks.control.host_run import Evidence, HostRun, Serving
from tasks.control.reporting.clock import stamp
from tasks.control.rules import compose
from tasks.control.rules.plan import needs_new_container
from tasks.control.rules.states import State
from tasks.control.run import Run
from tasks.control.tool import call, fail, probe_document, put_file, service_options
from tasks.control.who import who
from tasks.shared.deadlines import COMMAND, REVERT
from tasks.shared.errors import Refused, describe
from tasks.shared.lock import Lock
from tasks.shared.spaces import embedding_space


def switch(run: Run, me: HostRun, lock: Lock, override: str, why: str, previous: str | None = None) -> bool:
    """Switch the service, and confirm it over a new connection. Return whether the new release is confirmed.

    previous: the value for the host's record `previous`. None: the release that the host leaves.
    """
    check_lease(run, me)
    settings = me.settings
    back = max(settings.health_deadline, REVERT) + COMMAND  # seconds that going back may take
    warn_of_earlier_switch(me, settings.soak + settings.confirm_deadline + back)
    document = {
        "who": who(),
        "why": why,
        "probe": probe_document(me),
        "expect_env": compose.environment_of(override, settings.service),
        "drain": settings.drain,
        "readmit": settings.readmit,
    }
    answer = call(
        run,
        me,
        "switch",
        "activate",
        document=document,
        # Longer than the host itself takes at most (switch/detached.py): its own word is better than a cut line.
        deadline=2 * settings.health_deadline + settings.soak + back + 2 * COMMAND,
        release=lock.id,
        **service_options(me),
        within=settings.health_deadline,
        soak=settings.soak,
        confirm=settings.confirm_deadline,
        recreate=me.recreate or (me.facts is not None and needs_new_container(me.facts)),
        previous=previous,
        lease=me.lease,
    )
    if answer.get("token") and answer.get("state") == "awaiting":
        answer = confirm(run, me, answer["token"], back)
    return record_outcome(me, lock, override, answer)


def check_lease(run: Run, me: HostRun) -> None:
    if me.lease and not run.leases.is_held(me.name):
        what = "lost its lease: somebody took it, or the connection broke"
        raise Refused(me.name, what, me.lease, "none", "tasks/status.py, then the same again")


def warn_of_earlier_switch(me: HostRun, at_most: int) -> None:
    """Tell the operator that the host first ends an earlier switch. at_most: seconds."""
    if me.facts and me.facts.store.switching:
        waits = f"an earlier run was switching it: waits until that switch has ended, at most {at_most} s"
        me.target.log_styled(waits, fg="yellow", log_func=logger.warning)


def record_outcome(me: HostRun, lock: Lock, override: str, answer: dict[str, Any]) -> bool:
    """Into the report: how a switch ended. Return whether the release is confirmed.

    The inspected facts are out of date now. The report says what serves, or nothing where that is not known.
    """
    state = state_of_answer(answer)
    me.not_readmitted = answer.get("readmitted") is False
    if state is State.ACTIVE:
        me.switched = True
        row = me.report
        row.release, row.space, row.since = lock.id, embedding_space(lock), stamp(time.time())
        row.container, row.switch_seconds, row.served_cosine = None, answer.get("seconds"), answer.get("cosine")
    elif state in (State.FROZEN, State.UNKNOWN):
        me.claim_nothing()
    if not answer.get("ok"):
        me.regressed = me.regressed or state is State.ACTIVE
        return fail(me, describe(answer.get("error") or {}), state)
    environment = compose.environment_of(override, me.settings.service)
    serving = Serving(lock.id, answer["container"], answer["started"], list(answer["networks"]), environment)
    mark_confirmed(me, serving, State.ACTIVE)
    return True


def state_of_answer(answer: dict[str, Any]) -> State:
    """The state that the host reported. UNKNOWN if it gave no answer."""
    known = {each.label: each for each in (State.ACTIVE, State.WITHDRAWN, State.FROZEN, State.UNKNOWN)}
    if answer.get("state") in known:
        return known[answer["state"]]
    return State.FAILED if answer.get("answered", True) else State.UNKNOWN


def confirm(run: Run, me: HostRun, token: str, back: int) -> dict[str, Any]:
    """Confirm over a new connection, and wait for how the switch ended. back: seconds that going back may take.

    A connection can fail and an answer can get lost. So it tries twice; asking again is harmless.
    """
    connected, answer = False, {}
    for _ in range(2):
        try:
            with run.sessions.fresh(me.target):
                connected = True
                answer = call(run, me, "switch", "confirm", token=token, within=back + 30, deadline=back + 60)
        except Refused as no:
            answer = {"ok": False, "error": no.error}
        if "state" in answer:
            return answer
    if not connected:
        return {**answer, "state": State.UNKNOWN.label}  # it is about to put the old release back
    what = "was told that the release is confirmed; the result is not known"
    found, fix = describe(answer.get("error") or {}), "tasks/status.py, then the same again"
    return {
        "ok": False,
        "state": State.UNKNOWN.label,
        "error": Refused(me.name, what, "its answer", found, fix).error,
    }


def mark_confirmed(me: HostRun, serving: Serving, state: State) -> None:
    """Mark the host as confirmed, and keep what serves there for the recheck."""
    me.evidence.add(Evidence.CONFIRMED)
    me.serving = serving
    me.says(state)


def recheck_host(run: Run, me: HostRun) -> bool:
    """Whether what was confirmed still serves. If the host gives no answer, ask once more."""
    if me.serving is None:
        raise Refused(me.name, "was not confirmed in this run", next="tasks/status.py")
    serving = me.serving
    document = {
        "container": serving.container,
        "started": serving.started,
        "networks": serving.networks,
        "expect_env": serving.environment,
    }
    answer: dict[str, Any] = {}
    more = {"release": serving.release, "deadline": 120, **service_options(me)}
    for _ in range(2):
        answer = call(run, me, "switch", "recheck", document=document, **more)
        if answer.get("answered", True):
            break
    if answer.get("ok"):
        return True
    why = f"does not serve as it was confirmed: {describe(answer.get('error') or {})}"
    me.regressed = True
    me.evidence.discard(Evidence.CONFIRMED)
    me.claim_nothing()
    return fail(me, why, State.FAILED if answer.get("answered", True) else State.UNKNOWN)


def restore_override(run: Run, me: HostRun, lock: Lock, override: str) -> None:
    """Write the confirmed override again. Staging with other settings has replaced the file."""
    path = f"{me.settings.model_store}/state/{lock.id}/compose.override.yaml"
    if not put_file(run, me, path, override.encode()):
        raise Refused(me.name, "cannot write the override", next=f"look at {path}")
