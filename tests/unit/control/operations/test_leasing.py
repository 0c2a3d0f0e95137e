"""A lease on every host before anything changes; and its end, where its holder cannot end it."""

from __future__ import annotations

import pytest

from tasks.control.host_run import Evidence
from tasks.control.operations.leasing import lease, unlock
from tasks.control.rules.states import State
from tests.unit.control.facts import changed
from tests.unit.control.harness import make_lab

HELD = {"id": "x12345678", "who": "eve@desk", "why": "deploy", "since": "noon"}


@pytest.fixture
def lab(settings, lock):
    lab = make_lab(settings, lock)
    lab.target("gpu1").answers["lease", "hold"] = {"ok": True, "current": None}
    return lab


@pytest.fixture
def me(lab):
    return lab.run.hosts["gpu1"]


def take(lab, **more):
    return lab.perform("gpu1", lease, release="f" * 64, why="deploy", **more)


def test_a_host_is_held_for_this_run_and_told_by_whom(lab, me):
    assert take(lab).good
    assert me.has(Evidence.LEASED) and me.lease == lab.run.lease_id and lab.run.leases.is_held("gpu1")
    heard = lab.target("gpu1").call("lease", "hold").options
    assert heard["id"] == lab.run.lease_id and heard["release"] == "f" * 64 and "@" in heard["who"]
    assert heard["why"] == "deploy" and " with hf-offline " in heard["who"] and heard["store"] == "/srv/models"


def test_a_run_that_changes_nothing_takes_no_lease(lab, me):
    assert take(lab, needed=lambda: False).commands == 0
    assert me.has(Evidence.LEASED) and me.lease is None and lab.target("gpu1").calls == []
    assert take(lab, needed=lambda: True).commands == 1


def test_a_host_that_somebody_else_holds_fails_with_their_name(lab, me):
    no = {"where": "gpu1", "what": "is held by x9 of eve", "next": "tasks/unlock.py --data lease=x9"}
    lab.target("gpu1").answers["lease", "hold"] = {"ok": False, "error": no}
    assert not take(lab).good
    assert me.state is State.FAILED and not me.has(Evidence.LEASED) and me.lease is None
    assert me.why == "is held by x9 of eve. Next: pyinfra -y inventories/prod.py tasks/unlock.py --data lease=x9"


def test_a_host_that_was_switched_since_it_was_inspected_is_not_taken(lab, me):
    lab.target("gpu1").answers["lease", "hold"] = {"ok": True, "current": "e" * 64}
    assert not take(lab).good and "was switched since it was inspected" in me.why
    assert not me.has(Evidence.LEASED) and me.lease is None
    me.facts = changed(me.facts, "store.current", "e" * 64)
    assert take(lab).good


def test_a_shell_that_answers_nonsense_gives_no_lease(lab, me):
    lab.target("gpu1").answers["lease", "hold"] = "maintenance until Monday\n"
    assert not take(lab).good and "maintenance until Monday" in me.why and not me.has(Evidence.LEASED)


# ------------------------------------------------------------------------------------------------------------- unlock


@pytest.fixture
def held(lab, me, settings):
    me.settings = settings.model_copy(update={"lease": "x12345678"})
    me.facts = changed(me.facts, "store.lease", HELD)
    me.report.lease = "x12345678 of eve"
    lab.target("gpu1").answers["lease", "unlock"] = {"ok": True, "lease": "x12345678 of eve@desk"}
    return lab


def test_the_lease_that_was_named_ends(held, me):
    assert held.perform("gpu1", unlock).good
    assert me.state is State.UNLOCKED and "took x12345678 of eve@desk" in me.why and me.report.lease is None
    heard = held.target("gpu1").call("lease", "unlock").options
    assert heard["id"] == "x12345678" and "@" in heard["who"]


def test_another_lease_than_the_named_one_stays(held, me):
    no = {"where": "gpu1", "what": "has another lease"}
    held.target("gpu1").answers["lease", "unlock"] = {"ok": False, "error": no}
    assert not held.perform("gpu1", unlock).good
    assert me.state is State.FAILED and me.report.lease == "x12345678 of eve"


def test_a_host_that_nobody_holds_hears_nothing(lab, me):
    assert lab.perform("gpu1", unlock).commands == 0
    assert me.state is State.UNLOCKED and me.why == "nobody holds it" and lab.target("gpu1").calls == []


def test_a_lease_that_ended_meanwhile_is_no_failure(held, me):
    held.target("gpu1").answers["lease", "unlock"] = {"ok": True, "lease": None}
    assert held.perform("gpu1", unlock).good and me.why == "nobody holds it"


def test_a_dry_run_says_whose_lease_it_would_end(held, me, settings):
    held.rehearse("gpu1", unlock)
    assert (me.state, me.why) == (State.WOULD_UNLOCK, "would take x12345678 of eve@desk, deploy since noon")
    me.settings = settings.model_copy(update={"lease": "x87654321"})
    held.rehearse("gpu1", unlock)
    assert me.state is State.FAILED and "has another lease: x12345678" in me.why
    assert held.target("gpu1").calls == []
