"""Preflight, status and verify: what is wrong fails its host alone, and nothing on the host changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.control.host_run import Evidence
from tasks.control.operations.checking import preflight, status, verify
from tasks.control.rules import compose
from tasks.control.rules.states import State
from tasks.shared.lock import lock_text, parse_lock
from tasks.shared.spaces import embedding_space
from tests.unit.control.facts import changed, fit_facts, serving_facts
from tests.unit.control.harness import make_lab


@pytest.fixture
def lab(settings, lock):
    lab = make_lab(settings, gpus=("gpu1", "gpu2"))
    facts = serving_facts(lock, settings, lab.run.tool.path("/srv/models"))
    for each in lab.run.targets:
        each.facts, each.space = facts, embedding_space(lock)
    return lab


@pytest.fixture
def me(lab):
    return lab.run.hosts["gpu1"]


def test_a_host_without_problems_is_fit(lab, me):
    assert lab.perform("gpu1", preflight, problems=[]).commands == 0
    assert me.state is State.FIT and me.has(Evidence.FIT)


def test_a_host_with_problems_is_told_all_of_them_and_fails(lab, me):
    assert not lab.perform("gpu1", preflight, problems=["no rsync. Next: install rsync", "no python"]).good
    assert me.state is State.UNFIT and not me.has(Evidence.FIT)
    assert me.why == "no rsync. Next: install rsync; no python"
    assert lab.target("gpu1").said == ["no rsync. Next: install rsync", "no python"]


# ------------------------------------------------------------------------------------------------------------- status


def seen(lab, me, facts, lock=None):
    me.facts = facts
    ran = lab.perform("gpu1", status, lock=lock)
    assert lab.target("gpu1").calls == [], "it asks nothing more of the host"
    return ran.good, me.state


def test_what_runs_as_confirmed_is_in_sync(lab, me):
    assert seen(lab, me, me.facts) == (True, State.IN_SYNC)
    assert me.report.verified == "then" and me.report.cosine == 1.0 and me.report.versions == {"torch": "2.0"}


def test_a_host_that_serves_nothing_is_empty(lab, me):
    assert seen(lab, me, fit_facts()) == (True, State.EMPTY)


def test_drift_fails_and_says_everything(lab, me):
    odd = changed(changed(me.facts, "container.image", "sha256:0"), "store.blobs", {})
    assert seen(lab, me, odd) == (False, State.DRIFTED)
    assert "another image" in me.why and "8 of its blobs" in me.why and len(lab.target("gpu1").said) == 2
    assert "Next: pyinfra -y inventories/prod.py deploy.py" in me.why


def test_a_host_that_was_not_inspected_is_unreadable_and_not_in_sync(lab, me):
    assert seen(lab, me, None) == (False, State.UNREADABLE)


PENDING = {"to": "f" * 64, "from": "e" * 64}
LEASE = {"id": "x1", "who": "eve", "why": "deploy", "since": "now"}


def test_a_host_that_another_run_switches_is_switching_and_not_drifted(lab, me):
    busy = changed(changed(me.facts, "store.pending", PENDING), "container", None)
    held = changed(busy, "store.lease", LEASE)
    assert seen(lab, me, held) == (True, State.SWITCHING) and me.why == f"to {'f' * 12}, by lease x1 of eve"
    alone = changed(busy, "store.switching", True)
    assert seen(lab, me, alone) == (True, State.SWITCHING) and f"most likely back in {'e' * 12}" in me.why


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, f"a switch to {'f' * 12} is pending"),
        ({"lease": LEASE, "frozen": {"why": "x"}}, "is frozen: x"),
        ({"pending": {"to": None, "why": "its text is none of ours"}}, "its text is none of ours"),
    ],
)
def test_a_switch_that_nobody_ends_is_drift(lab, me, change, said):
    busy = replace(me.facts, store=replace(me.facts.store, **{"pending": PENDING, **change}))
    assert seen(lab, me, busy) == (False, State.DRIFTED) and said in me.why


def test_a_fleet_that_answers_in_two_spaces_is_drift_of_each_host(lab, me, lock):
    lab.run.hosts["gpu2"].space = "other"
    assert seen(lab, me, me.facts) == (False, State.DRIFTED)
    assert "the fleet answers in 2 embedding spaces" in me.why and f"1 in {embedding_space(lock)}, 1 in other" in me.why


@pytest.mark.parametrize("space", ["none", "unknown"])
def test_a_host_without_a_space_or_with_an_unknown_one_mixes_nothing(lab, me, space):
    lab.run.hosts["gpu2"].space = space
    assert seen(lab, me, me.facts) == (True, State.IN_SYNC)


def test_while_a_rollout_holds_a_host_the_fleet_may_be_mixed(lab, me):
    other = lab.run.hosts["gpu2"]
    other.space, other.facts = "other", changed(other.facts, "store.lease", {})
    assert seen(lab, me, me.facts) == (True, State.IN_SYNC)


def test_other_settings_in_git_are_told_of_the_release_that_serves(lab, me, lock, settings, document):
    assert seen(lab, me, me.facts, lock)[0] and me.report.other_settings is False
    me.settings = settings.model_copy(update={"environment": {"A": "1"}})
    assert seen(lab, me, me.facts, lock) == (True, State.IN_SYNC) and me.report.other_settings is True
    me.report.other_settings = None
    document["serve"]["attention"] = "eager"
    seen(lab, me, me.facts, parse_lock(lock_text(document)))
    assert me.report.other_settings is None


# ------------------------------------------------------------------------------------------------------------- verify

WHOLE = {"ok": True, "damaged": {}, "wrong": [], "missing": [], "bytes": 17, "verified": "now"}


def test_what_is_hashed_and_whole_is_intact(lab, me, lock, settings):
    me.settings = settings.model_copy(update={"sample": 10})
    lab.target("gpu1").answers["store", "verify"] = WHOLE
    assert lab.perform("gpu1", verify).good
    assert (me.state, me.report.hashed_bytes, me.report.release) == (State.INTACT, 17, lock.id)
    heard = lab.target("gpu1").call("store", "verify")
    assert heard.options["sample"] == "10" and heard.document == lock.document


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"damaged": {"a": {"what": "layer 0"}}}, "layer 0 is damaged"),
        ({"wrong": ["lock.json is another"]}, "lock.json is another"),
        ({"missing": ["some blob"]}, "some blob is missing"),
    ],
)
def test_damage_is_named_with_what_repairs_it(lab, me, found, said):
    lab.target("gpu1").answers["store", "verify"] = {**WHOLE, **found}
    assert not lab.perform("gpu1", verify).good
    assert me.state is State.DAMAGED and said in me.why
    assert me.why.endswith("Next: pyinfra -y inventories/prod.py deploy.py, which repairs it")


def test_a_host_that_serves_nothing_has_nothing_to_hash(lab, me):
    me.facts = fit_facts()
    assert lab.perform("gpu1", verify).good and me.state is State.EMPTY
    me.facts = changed(me.facts, "stack.overrides", {"o.yml": compose.MARKER})
    assert not lab.perform("gpu1", verify).good and me.state is State.DRIFTED


def test_a_release_whose_lock_is_gone_is_not_taken_for_intact(lab, me):
    me.facts = changed(me.facts, "store.locks", {})
    assert not lab.perform("gpu1", verify).good and "is missing or not readable" in me.why
    me.facts = None
    assert not lab.perform("gpu1", verify).good and "could not be inspected" in me.why


def test_a_dry_run_hashes_nothing(lab, me):
    assert lab.rehearse("gpu1", verify).commands == 1
    assert me.state is State.WOULD_HASH and lab.target("gpu1").calls == []
