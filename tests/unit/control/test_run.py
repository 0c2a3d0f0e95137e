"""One run: who is who, who failed, and whether anything is to be done; and what it knows of one host."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tasks.control.host_run import Evidence, HostReport, Phase
from tasks.control.rules.plan import HostPlan
from tasks.control.rules.states import State
from tasks.shared.spaces import embedding_space
from tests.unit.control.harness import make_lab

NOTHING = HostPlan(False, {}, False, False, False, False, False, (), ())


@pytest.fixture
def run(settings, lock):
    return make_lab(settings, lock, gpus=("a", "b", "c")).run


def test_hosts_out_of_service_are_in_no_wave_and_shown(run):
    assert run.gpus == ["a", "b", "c"] and run.everyone == ["bastion", "a", "b", "c"] and run.whole_fleet
    run.hosts["b"].out_of_service, run.fleet = "fan", ["a", "c"]
    assert run.gpus == ["a", "c"] and run.out_of_service == ["b"] and run.whole_fleet
    assert [name for wave in run.plan_waves([1, "100%"]) for name in wave] == ["a", "c"]


def test_a_run_that_the_limit_keeps_from_the_bastion_is_not_for_it(run):
    run.bastion.in_limit = False
    assert run.everyone == ["a", "b", "c"]


def test_a_run_for_a_part_of_the_fleet_is_not_for_all(run):
    run.fleet = ["a", "b", "c", "d"]
    assert not run.whole_fleet


def test_who_regressed_counts_as_failed_whatever_becomes_of_it(run):
    assert run.failed() == set()
    run.failed_in_pyinfra = lambda: {"c", "bastion", "elsewhere"}
    assert run.failed() == {"c"}, "GPU hosts of this run"
    run.hosts["b"].regressed = run.hosts["b"].taken_back = True
    assert run.failed() == {"b", "c"}


def test_a_hosts_own_wave_counts_forward_alone(run):
    run.hosts["c"].wave = 1
    assert run.plan_waves([1, "100%"]) == [["c"], ["a"], ["b"]] and run.plan_waves(["100%"], own=False) == [
        ["a", "b", "c"]
    ]


def test_evidence_is_counted_by_kind(run):
    run.hosts["a"].evidence.add(Evidence.STAGED)
    run.hosts["b"].evidence.add(Evidence.FIT)
    assert run.count(["a", "b", "c"], Evidence.STAGED) == 1
    assert run.without(["a", "b", "c"], Evidence.STAGED) == ["b", "c"]


def test_a_run_changes_something_unless_every_host_is_known_to_need_nothing(run):
    assert run.changes_something(), "nobody was planned yet"
    for each in run.targets:
        each.plan = NOTHING
    assert not run.changes_something()
    run.hosts["b"].plan = replace(NOTHING, lease=True)
    assert run.changes_something()
    run.hosts["b"].plan = None
    assert run.changes_something()


@pytest.mark.parametrize(
    ("plan", "fleet", "settings_of", "good"),
    [
        ([["a", "b", "c"]], "abc", {}, True),
        ([["a"], ["b", "c"]], "abc", {}, False),
        ([["a", "b", "c"]], "abcd", {}, False),
        ([["a", "b", "c"]], "abc", {"max_failed_hosts": 1}, False),
    ],
)
def test_hosts_move_at_once_only_where_one_wave_takes_all_and_none_may_stay(run, plan, fleet, settings_of, good, lock):
    run.waves, run.fleet = plan, list(fleet)
    run.bastion.settings = run.bastion.settings.model_copy(update=settings_of)
    for each in run.targets:
        each.space = "old"
    assert run.moves_at_once() is good


def test_hosts_that_are_there_already_do_not_hinder(run, lock):
    run.waves = [["a"], ["b", "c"]]
    for each in run.targets:
        each.space = embedding_space(lock)
    run.hosts["b"].space = "old"
    assert run.moves_at_once()


def test_a_command_that_is_about_no_release_has_none(run):
    run.lock = None
    with pytest.raises(LookupError):
        assert run.release


def test_a_lease_id_is_no_number_for_pyinfra_and_no_two_runs_share_it(settings):
    ids = {make_lab(settings).run.lease_id for _ in range(20)}
    assert len(ids) == 20 and all(each[0] == "x" and len(each) == 9 for each in ids)


# ------------------------------------------------------------------------------------------------------------ one host


@pytest.fixture
def me(run):
    return run.hosts["a"]


def test_a_reason_is_for_people_to_paste_and_does_not_repeat_the_host(me):
    me.says(State.FAILED, "a: is \033[31mwrong. Next: deploy.py")
    assert (me.state, me.why) == (State.FAILED, "is ?[31mwrong. Next: pyinfra -y inventories/prod.py deploy.py")
    me.says(State.FIT)
    assert me.why == ""


def test_a_phase_ends_with_its_time_and_its_own_verdict(me):
    with me.phase("stage") as now:
        time.sleep(0.02)
        now.ok = True
    with pytest.raises(ValueError), me.phase("activate"):
        raise ValueError
    first, second = me.report.phases
    assert (first.phase, first.ok, second.phase, second.ok) == ("stage", True, "activate", False)
    assert first.end > first.start and me.running is None


def test_a_phase_without_a_name_counts_its_time_alone(me):
    with me.phase(""):
        me.running = replace(me.running, start=me.running.start - 2)
    assert me.report.phases == [] and me.report.seconds == pytest.approx(2, abs=0.2)


def test_a_phase_that_is_cut_is_told_and_one_that_ended_is_not(me):
    assert me.end_phase() == ""
    me.running = Phase("stage", time.time() - 3)
    assert me.end_phase() == "stage" and me.end_phase() == "" and me.report.seconds == pytest.approx(3, abs=0.2)


def test_after_a_switch_that_nobody_answered_nothing_is_claimed(me):
    me.report = HostReport(release="f" * 64, since="now", container="healthy", space="s", from_release="e" * 64)
    me.claim_nothing()
    row = me.report
    assert (row.release, row.since, row.container, row.space, row.from_release) == (
        None,
        None,
        None,
        "unknown",
        "e" * 64,
    )
