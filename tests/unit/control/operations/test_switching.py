"""What the control machine makes of a host's answers to a switch: forward, rechecked, withdrawn, rolled back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.control.host_run import Evidence, Serving
from tasks.control.operations.switch_calls import check_lease, mark_confirmed, switch
from tasks.control.operations.switching import activate, check_target, one_target, recheck, roll_back, withdraw
from tasks.control.rules import compose
from tasks.control.rules.plan import plan_host
from tasks.control.rules.states import State
from tasks.shared.errors import Refused
from tasks.shared.lock import lock_text, parse_lock
from tasks.shared.spaces import embedding_space
from tests.unit.control.facts import NOW, changed, serving_facts
from tests.unit.control.harness import make_lab

AWAITING = {"ok": True, "state": "awaiting", "token": "1"}
CONFIRMED = {"ok": True, "state": "active", "container": "c2", "started": "now", "networks": ["front"], "seconds": 3}
AWAY = {
    "ok": False,
    "state": "active",
    "readmitted": False,
    "error": {"where": "readmit", "what": "failed with code 1"},
}
LOST = None  # the connection breaks
GOLDENS = "f" * 64


@pytest.fixture
def old(document):
    """The release from before, in a space of its own."""
    document["serve"]["dtype"] = "float32"
    return parse_lock(lock_text(document))


@pytest.fixture
def lab(settings, lock, old):
    """Two hosts that serve the old release; the first is about to be switched."""
    lab = make_lab(settings, lock, gpus=("gpu1", "gpu2"), facts=serving_facts(old, settings))
    for name in lab.run.gpus:
        me = lab.run.hosts[name]
        me.says(State.READY)
        me.report.release, me.report.space = old.id, embedding_space(old)
        me.space = embedding_space(old)
        plan(lab, name)
    return lab


def plan(lab, name="gpu1"):
    me, run = lab.run.hosts[name], lab.run
    text = override_of(lab, run.release)
    me.plan = plan_host(me.facts, me.settings, run.release, text, {"lock": None, "goldens": None}, GOLDENS, NOW)


def override_of(lab, lock):
    return compose.override(lock, lab.run.settings, lab.run.tool.path("/srv/models"), True)


@pytest.fixture
def me(lab):
    return lab.run.hosts["gpu1"]


def answering(lab, activation, *confirmations, name="gpu1"):
    target = lab.target(name)
    target.answers[("switch", "activate")] = activation if isinstance(activation, list) else [activation]
    target.answers[("switch", "confirm")] = list(confirmations)
    return target


def switched(lab, *answers):
    """A deploy's switch on the first host, which answers so -> success to pyinfra."""
    answering(lab, *answers)
    return lab.perform("gpu1", activate).good


def row(me):
    return me.state, me.report.release, me.report.space


# ------------------------------------------------------------------------------------------------------- the switch


def test_a_confirmed_switch_serves_the_new_release(lab, me, lock):
    assert switched(lab, AWAITING, {**CONFIRMED, "cosine": 0.999})
    assert row(me) == (State.ACTIVE, lock.id, embedding_space(lock)) and me.has(Evidence.CONFIRMED)
    assert me.report.served_cosine == 0.999 and me.report.switch_seconds == 3 and me.switched and not me.regressed
    assert me.serving == Serving(
        lock.id, "c2", "now", ["front"], compose.environment_of(override_of(lab, lock), "backend")
    )
    assert [(phase.phase, phase.ok) for phase in me.report.phases] == [("activate", True)]


def test_the_host_is_told_what_to_switch_how_and_how_long_it_has(lab, me, settings, lock):
    me.settings = settings.model_copy(update={"drain": "lb out", "readmit": "lb in", "soak": 7, "confirm_deadline": 11})
    me.lease = "x1"
    lab.run.leases.is_held = lambda name: True
    assert switched(lab, AWAITING, CONFIRMED)
    heard = lab.target("gpu1").call("switch", "activate")
    assert (
        heard.document["drain"] == "lb out"
        and heard.document["readmit"] == "lb in"
        and heard.document["why"] == "deploy"
    )
    assert heard.document["expect_env"]["HF_HUB_OFFLINE"] == "1" and heard.document["probe"] is None
    asked = {key: heard.options[key] for key in ("release", "service", "stack", "override", "project", "soak", "lease")}
    assert asked == {
        "release": lock.id,
        "service": "backend",
        "stack": "/srv/docai",
        "override": "docker-compose.override.yml",
        "project": "docai",
        "soak": "7",
        "lease": "x1",
    }
    assert heard.options["within"] == "600" and heard.options["confirm"] == "11"
    assert heard.timeout > 600 + 7 + 300 + 3 * 300, "longer than all that the host may do"


def test_it_is_confirmed_over_a_new_connection(lab):
    assert switched(lab, AWAITING, CONFIRMED)
    target = lab.target("gpu1")
    assert target.connections == 1 and target.call("switch", "confirm").options["token"] == "1"


def test_a_host_that_was_not_readmitted_serves_the_new_release_all_the_same(lab, me, lock):
    assert switched(lab, AWAITING, AWAY), "to pyinfra it is a host that can still be taken back"
    assert row(me) == (State.ACTIVE, lock.id, embedding_space(lock)) and me.not_readmitted
    assert not me.has(Evidence.CONFIRMED) and me.regressed and "failed with code 1" in me.why
    assert [phase.ok for phase in me.report.phases] == [False]


def test_a_host_that_withdrew_serves_the_old_release_and_of_a_frozen_one_nothing_is_claimed(lab, me, old):
    assert not switched(lab, {"ok": False, "state": "withdrawn", "error": {}})
    assert row(me) == (State.WITHDRAWN, old.id, embedding_space(old))
    assert not switched(lab, AWAITING, {"ok": False, "state": "frozen", "error": {}})
    assert row(me) == (State.FROZEN, None, "unknown") and not me.has(Evidence.CONFIRMED)


def test_a_new_connection_that_fails_is_tried_once_more(lab, me, lock):
    lab.target("gpu1").refuses_first = 1
    assert switched(lab, AWAITING, CONFIRMED) and me.report.release == lock.id and lab.target("gpu1").connections == 2


def test_an_answer_that_is_lost_is_asked_for_again(lab, me, lock):
    assert switched(lab, AWAITING, LOST, CONFIRMED) and me.report.release == lock.id


def test_after_the_confirmation_nobody_says_that_the_old_release_comes_back(lab, me):
    lab.target("gpu1").takes_at_most = 1
    assert not switched(lab, AWAITING, LOST)
    assert row(me) == (State.UNKNOWN, None, "unknown")
    assert "back by itself" not in me.why.partition("found")[0] and me.why.endswith("then the same again")
    lab.target("gpu1").takes_at_most = 99
    assert not switched(lab, AWAITING, LOST, LOST) and me.state is State.UNKNOWN


def test_a_host_that_takes_no_new_connection_at_all_goes_back(lab, me):
    lab.target("gpu1").takes_at_most = 0
    assert not switched(lab, AWAITING)
    assert row(me) == (State.UNKNOWN, None, "unknown") and "takes no new connection" in me.why


def test_of_a_switch_that_nobody_answered_nothing_is_claimed(lab, me):
    assert not switched(lab, LOST)
    assert row(me) == (State.UNKNOWN, None, "unknown")


def test_a_hosts_own_no_before_it_began_is_a_plain_failure(lab, me, old):
    assert not switched(lab, {"ok": False, "error": {"where": "x", "what": "is frozen"}})
    assert row(me) == (State.FAILED, old.id, embedding_space(old)) and me.why == "x: is frozen"


@pytest.mark.parametrize(("detached", "told"), [([], False), (["is not on its network n"], True)])
def test_a_container_that_was_detached_is_made_anew(lab, me, detached, told):
    me.facts = changed(me.facts, "container.detached", detached)
    assert switched(lab, AWAITING, CONFIRMED)
    assert ("recreate" in lab.target("gpu1").call("switch", "activate").options) is told


def test_a_host_that_asks_for_a_new_container_gets_one(lab, me):
    me.recreate = True
    assert (
        switched(lab, AWAITING, CONFIRMED) and lab.target("gpu1").call("switch", "activate").options["recreate"] is True
    )


def test_a_host_without_a_container_is_switched_as_any_other(lab, me):
    me.facts = changed(me.facts, "container", None)
    assert switched(lab, AWAITING, CONFIRMED)
    assert "recreate" not in lab.target("gpu1").call("switch", "activate").options


def test_nothing_is_switched_without_the_lease_that_was_taken(lab, me):
    me.lease = "x1"
    assert not switched(lab, AWAITING, CONFIRMED)
    assert lab.target("gpu1").calls == [] and "lost its lease" in me.why and me.state is State.FAILED
    me.lease = None
    check_lease(lab.run, me)  # a run that takes none


def test_the_operator_is_told_that_an_earlier_switch_ends_first(lab, me):
    assert switched(lab, AWAITING, CONFIRMED) and lab.target("gpu1").said == []
    me.facts = changed(me.facts, "store.switching", True)
    assert switched(lab, AWAITING, CONFIRMED)
    assert "waits until that switch has ended, at most 990 s" in lab.target("gpu1").said[0]


# ---------------------------------------------------------------------------------------------------------- activate


def serving(lab, me, lock):
    """The host serves the run's release already."""
    me.facts = serving_facts(lock, me.settings, lab.run.tool.path("/srv/models"), GOLDENS)
    plan(lab, me.name)
    assert me.plan.has_nothing_to_do


def test_a_host_that_serves_the_release_is_confirmed_unchanged_and_hears_nothing(lab, me, lock):
    serving(lab, me, lock)
    assert lab.perform("gpu1", activate).commands == 0
    assert me.state is State.UNCHANGED and me.has(Evidence.CONFIRMED) and lab.target("gpu1").calls == []
    assert me.serving and (me.serving.container, me.serving.networks) == ("c1", ["front"]) and not me.switched


@pytest.mark.parametrize(("moved", "repaired"), [(5, []), (0, ["layer 0"])])
def test_a_release_that_was_repaired_under_a_service_is_active(lab, me, lock, moved, repaired):
    serving(lab, me, lock)
    me.report.moved_bytes, me.report.repaired = moved, repaired
    lab.perform("gpu1", activate)
    assert me.state is State.ACTIVE and me.has(Evidence.CONFIRMED)


def test_a_host_that_serves_and_must_have_a_new_container_is_switched(lab, me, lock):
    serving(lab, me, lock)
    me.recreate = True
    assert switched(lab, AWAITING, CONFIRMED) and me.switched
    assert me.report.changes == "its service is recreated"


def test_a_dry_run_switches_nothing_and_says_what_it_would(lab, me, lock, settings):
    assert lab.rehearse("gpu1", activate).commands == 1
    assert me.state is State.WOULD_CHANGE and lab.target("gpu1").calls == [] and not me.has(Evidence.CONFIRMED)
    serving(lab, me, lock)
    me.says(State.READY)
    lab.rehearse("gpu1", activate)
    assert me.state is State.UNCHANGED
    me.says(State.WOULD_CHANGE, "staged again")
    lab.rehearse("gpu1", activate)
    assert me.state is State.WOULD_CHANGE, "what staging would do stays said"


def test_a_host_that_is_unfit_or_was_not_planned_is_not_switched(lab, me):
    me.says(State.UNFIT)
    assert lab.perform("gpu1", activate).commands == 0
    me.says(State.READY)
    me.plan = None
    assert lab.perform("gpu1", activate).commands == 0 and lab.target("gpu1").noops == ["unfit", "unfit"]


# ----------------------------------------------------------------------------------------------------------- recheck


@pytest.fixture
def asked(lab, me):
    """asked(answer, …): a host is rechecked, and answers so -> what it was asked last, or None."""
    me.lease = lab.run.lease_id
    lab.run.leases.is_held = lambda name: True

    def ask(*answers):
        target = lab.target("gpu1")
        target.answers[("switch", "recheck")] = list(answers)
        before = len(target.calls)
        assert lab.perform("gpu1", recheck).good, "to pyinfra it is a host that can still be taken back"
        return target.calls[-1] if len(target.calls) > before else None

    return ask


def test_a_host_that_fell_after_its_confirmation_is_a_failed_one_that_can_be_taken_back(lab, me, asked, lock):
    assert asked({"ok": True}) is None, "not confirmed yet"
    assert switched(lab, AWAITING, CONFIRMED)
    heard = asked({"ok": True})
    assert heard.options["release"] == lock.id and heard.document["container"] == "c2"
    assert row(me)[:2] == (State.ACTIVE, lock.id) and not me.regressed
    asked({"ok": False, "error": {"where": "backend", "what": "did not stay up"}})
    assert row(me) == (State.FAILED, None, "unknown") and me.regressed and not me.has(Evidence.CONFIRMED)
    assert (me.report.phases[-1].phase, me.report.phases[-1].ok) == ("recheck", False)
    assert me.why == "does not serve as it was confirmed: backend: did not stay up"
    assert "gpu1" in lab.run.failed() and not lab.failed
    assert asked({"ok": True}) is None, "once is enough"


def test_a_host_that_needed_no_switch_is_asked_too_unless_the_run_changes_nothing(lab, me, asked, lock):
    serving(lab, me, lock)
    lab.perform("gpu1", activate)
    heard = asked({"ok": True})
    wanted = compose.environment_of(override_of(lab, lock), "backend")
    assert heard.document == {"container": "c1", "started": "then", "networks": ["front"], "expect_env": wanted}
    me.lease = None
    assert asked({"ok": True}) is None


def test_a_host_that_cannot_be_asked_is_asked_again_and_then_unknown(me, asked, lock):
    mark_confirmed(me, Serving(lock.id, "c1", "then", [], {}), State.UNCHANGED)
    asked(LOST, {"ok": True})
    assert me.state is State.UNCHANGED
    asked(LOST, LOST)
    assert row(me) == (State.UNKNOWN, None, "unknown") and me.regressed


def test_a_dry_run_rechecks_nobody(lab, me, asked, lock):
    mark_confirmed(me, Serving(lock.id, "c1", "then", [], {}), State.UNCHANGED)
    assert lab.rehearse("gpu1", recheck).commands == 0
    assert asked({"ok": True}) is not None


# ---------------------------------------------------------------------------------------------------------- withdraw


def taken_back(lab, me, *answers, failed=("gpu2",), hosts=("gpu1",)):
    """A host that was switched, in a rollout where these failed -> its row, after the way back by these answers."""
    if not me.switched:
        assert switched(lab, AWAITING, CONFIRMED)
    lab.failed |= set(failed)
    answering(lab, AWAITING, *answers)
    ran = lab.perform("gpu1", withdraw, hosts=hosts)
    assert ran.commands == 1 and not ran.good, "the rollout failed, whatever becomes of this host"
    return row(me)


def test_a_host_that_is_taken_back_serves_the_old_release(lab, me, old):
    assert taken_back(lab, me, CONFIRMED) == (State.WITHDRAWN, old.id, embedding_space(old))
    assert me.report.phases[-1].ok, "its phase did what it is for"
    assert me.why == "withdrawn: gpu2 failed" and not me.has(Evidence.CONFIRMED)
    heard = lab.target("gpu1").calls[-2]
    assert heard.options["release"] == old.id and heard.options["previous"] == old.id
    (path,) = [words for words in lab.target("gpu1").shell_words if f"state/{old.id}/compose.override.yaml" in words]
    assert "mv -T" in path, "its own override is back, too"


def test_the_way_back_leaves_the_host_its_record_of_an_earlier_release(lab, me):
    me.facts = changed(me.facts, "store.previous", "1" * 64)
    taken_back(lab, me, CONFIRMED)
    assert lab.target("gpu1").calls[-2].options["previous"] == "1" * 64


def test_so_does_one_whose_readmit_fails_on_the_way_back(lab, me, old):
    assert taken_back(lab, me, AWAY) == (State.WITHDRAWN, old.id, embedding_space(old))
    assert me.not_readmitted and "failed with code 1" in me.why


def test_one_that_does_not_go_back_is_told(lab, me, lock):
    state, serves, _ = taken_back(lab, me, {"ok": False, "state": "withdrawn", "error": {}})
    assert (state, serves) == (State.NOT_WITHDRAWN, lock.id) and "going back failed" in me.why


def test_of_one_that_froze_on_its_way_back_nothing_is_claimed(lab, me):
    assert taken_back(lab, me, {"ok": False, "state": "frozen", "error": {}}) == (State.FROZEN, None, "unknown")


def test_one_that_served_nothing_before_stays_and_says_so(lab, me):
    me.facts = changed(me.facts, "store.current", None)
    assert taken_back(lab, me)[0] is State.NOT_WITHDRAWN
    assert "it served nothing before" in me.why


def test_one_whose_old_release_is_not_whole_any_more_stays_and_says_so(lab, me):
    me.facts = changed(me.facts, "store.locks", {})
    assert taken_back(lab, me)[0] is State.NOT_WITHDRAWN
    assert "going back failed" in me.why and "is not complete" in me.why


def test_one_whose_disk_takes_no_override_stays_and_says_so(lab, me):
    assert switched(lab, AWAITING, CONFIRMED)
    lab.target("gpu1").disk_full = True
    assert taken_back(lab, me)[0] is State.NOT_WITHDRAWN and "cannot write the override" in me.why


def test_a_host_that_is_not_readmitted_is_taken_back_though_no_other_failed(lab, me, old):
    assert switched(lab, AWAITING, AWAY) and me.regressed
    back = taken_back(lab, me, CONFIRMED, failed=(), hosts=())
    assert back == (State.WITHDRAWN, old.id, embedding_space(old)) and me.taken_back
    assert "failed with code 1" in me.why
    assert "gpu1" in lab.run.failed(), "while others ask whether somebody failed"
    assert lab.perform("gpu1", withdraw, hosts=["gpu1"]).commands == 0, "once is enough"


@pytest.mark.parametrize(
    ("failed", "max_failed", "hosts", "goes"),
    [
        (("gpu2",), 0, ("gpu1",), True),
        ((), 0, ("gpu1",), False),
        (("gpu2",), 1, ("gpu1",), False),
        (("gpu2",), 0, ("gpu2",), False),
    ],
)
def test_only_a_switched_host_of_a_wave_that_failed_too_often_goes_back(
    lab, me, settings, failed, max_failed, hosts, goes
):
    lab.run.bastion.settings = settings.model_copy(update={"max_failed_hosts": max_failed})
    assert switched(lab, AWAITING, CONFIRMED)
    lab.failed |= set(failed)
    answering(lab, AWAITING, CONFIRMED)
    assert lab.perform("gpu1", withdraw, hosts=hosts).commands == goes


def test_a_host_that_was_never_switched_has_nothing_to_withdraw(lab, me, lock):
    serving(lab, me, lock)
    lab.perform("gpu1", activate)
    lab.failed.add("gpu2")
    assert lab.perform("gpu1", withdraw, hosts=["gpu1"]).commands == 0
    assert lab.target("gpu1").noops[-1] == "nothing to withdraw"


# ---------------------------------------------------------------------------------------------------------- rollback


WHOLE = {"ok": True, "damaged": {}, "wrong": [], "missing": [], "bytes": 1, "verified": "now"}
BACK = {
    ("signed", "check"): {"ok": True},
    ("store", "verify"): WHOLE,
    ("engine", "load"): {"ok": True},
    ("switch", "check"): {"ok": True, "recreate": False},
}


@pytest.fixture
def new(lab, lock, old, settings):
    """Both hosts serve the new release, and have the old one as their previous."""
    tool = lab.run.tool.path("/srv/models")
    before, facts = serving_facts(old, settings, tool), serving_facts(lock, settings, tool)
    store = facts.store
    both = replace(
        store,
        releases=[lock.id, old.id],
        previous=old.id,
        locks={**store.locks, **before.store.locks},
        states={**store.states, **before.store.states},
    )
    for name in lab.run.gpus:
        lab.run.hosts[name].facts = replace(facts, store=both)
        lab.target(name).answers |= BACK
    lab.run.lock = None
    return lab


def test_a_rollback_proves_its_target_first(new, me, old):
    assert new.perform("gpu1", check_target).good
    assert me.has(Evidence.INTACT) and me.goes_to == old.id and me.state is State.READY
    assert me.report.to_space == embedding_space(old) and me.report.verified == "now" and me.made_of == old.summary()
    assert new.target("gpu1").heard() == ["signed check", "store verify", "engine load", "switch check"]
    assert new.target("gpu1").call("store", "verify").document == old.document


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({**WHOLE, "damaged": {"a": {"what": "layer 0"}}}, "layer 0"),
        ({**WHOLE, "missing": ["some blob"]}, "some blob"),
        ({**WHOLE, "wrong": ["lock.json"]}, "lock.json"),
    ],
)
def test_a_target_that_is_not_intact_stops_the_rollback(new, me, answer, said):
    new.target("gpu1").answers["store", "verify"] = answer
    assert not new.perform("gpu1", check_target).good
    assert me.state is State.FAILED and said in me.why and not me.has(Evidence.INTACT)
    assert "engine load" not in new.target("gpu1").heard()


def test_a_host_that_was_not_inspected_or_has_no_engine_is_not_rolled_back(new, me):
    me.facts = changed(me.facts, "docker", None)
    assert not new.perform("gpu1", check_target).good and "has no Docker Engine" in me.why
    me.facts = None
    assert not new.perform("gpu1", check_target).good and new.target("gpu1").calls == []


def test_a_dry_rollback_says_where_each_host_would_go(new, me, old, lock):
    new.rehearse("gpu1", check_target)
    assert (me.state, me.why, me.goes_to) == (State.WOULD_CHANGE, f"to {old.short}", old.id)
    assert new.target("gpu1").calls == []
    me.goes_to = None
    me.facts = changed(me.facts, "store.previous", lock.id)
    new.rehearse("gpu1", check_target)
    assert (me.state, me.why) == (State.UNCHANGED, "")
    me.goes_to = None
    me.facts = changed(me.facts, "store.previous", None)
    new.rehearse("gpu1", check_target)
    assert me.state is State.FAILED and "nowhere to go" in me.why


def test_hosts_that_would_go_to_different_releases_go_nowhere(new, me, old, lock):
    other = new.run.hosts["gpu2"]
    me.goes_to, other.goes_to = old.id, old.id
    assert new.perform("gpu1", one_target).commands == 0 and me.has(Evidence.AGREED)
    me.evidence.clear()
    other.goes_to = lock.id
    assert not new.perform("gpu1", one_target).good and not me.has(Evidence.AGREED)
    assert f"gpu1 to {old.short}, gpu2 to {lock.short}" in me.why and "--data release=ID" in me.why
    new.rehearse("gpu1", one_target)
    assert other.state is State.FAILED, "the last host of a dry run knows of all"


def test_a_rollback_switches_back_by_the_same_way(new, me, old):
    new.perform("gpu1", check_target)
    answering(new, AWAITING, CONFIRMED)
    assert new.perform("gpu1", roll_back).good
    assert row(me) == (State.ACTIVE, old.id, embedding_space(old)) and me.has(Evidence.CONFIRMED)
    heard = new.target("gpu1").call("switch", "activate")
    assert heard.options["release"] == old.id and heard.document["why"] == "rollback"
    assert heard.options["previous"] == old.id, "the same command again stays there"


def test_a_rollback_to_what_serves_already_changes_nothing(new, me, lock):
    me.facts = changed(me.facts, "store.previous", lock.id)
    new.perform("gpu1", check_target)
    assert new.perform("gpu1", roll_back).good
    assert me.state is State.UNCHANGED and me.has(Evidence.CONFIRMED)
    assert "switch activate" not in new.target("gpu1").heard()


def test_a_host_that_cannot_be_inspected_is_refused_in_words(lab, me, lock):
    me.facts = None
    with lab.on("gpu1"), pytest.raises(Refused, match="gpu1: could not be inspected"):
        switch(lab.run, me, lock, "", why="deploy")
    me.serving = None
    me.evidence.add(Evidence.CONFIRMED)
    me.lease = lab.run.lease_id
    assert not lab.perform("gpu1", recheck).good and "was not confirmed in this run" in me.why
