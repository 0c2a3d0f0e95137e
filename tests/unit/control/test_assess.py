"""Each host is inspected once a run and planned once a run; what cannot be read stops, and is never taken for empty."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from tasks.control import assess
from tasks.control.git.files import FOLDER
from tasks.control.git.lockfile import lock_path
from tasks.control.host_run import HostRun
from tasks.control.rules import plan
from tasks.control.rules.preflight import NOT_INSPECTED
from tasks.shared.lock import lock_text, parse_lock
from tasks.shared.spaces import embedding_space
from tests.unit.control.facts import changed, fit_facts, serving_facts
from tests.unit.control.harness import make_lab


@pytest.fixture
def lab(settings, lock, desk):
    (desk / FOLDER).mkdir(parents=True)
    lock_path(settings).write_text(lock_text(lock.document))
    return fresh(make_lab(settings, lock, gpus=("gpu1", "gpu2", "gpu3")), fit_facts())


def fresh(lab, facts):
    """Nobody was inspected yet; each host would give these facts."""
    for me in lab.run.hosts.values():
        me.inspected = me.asked = False
        me.facts = me.python = None
        me.tools = []
        me.target.facts = asdict(facts)
    return lab


@pytest.fixture
def me(lab):
    return lab.run.hosts["gpu1"]


# --------------------------------------------------------------------------------------------------------- inspecting


def test_a_host_is_asked_once(me, settings, lock):
    facts = changed(serving_facts(lock, settings), "store.tools", ["tool-x.pyz"])
    me.target.facts = asdict(facts)
    assess.inspect(me)
    assess.inspect(me)
    assert me.facts == facts and me.python == [3, 11, 2] and me.tools == ["tool-x.pyz"]
    assert me.space == embedding_space(lock) and me.report.release == lock.id and me.asked
    assert len(me.target.inspections) == 1


def test_each_machine_is_asked_about_what_it_is_for(lab, me, settings):
    lab.run.bastion.settings = settings.model_copy(update={"bundle": "/media/stick"})
    for each in (me, lab.run.bastion):
        assess.inspect(each)
    (gpu,), (bastion,) = me.target.inspections, lab.run.bastion.target.inspections
    assert gpu["stack"] == "/srv/docai" and gpu["egress"] == ["huggingface.co:443"] and gpu["bundle"] is None
    assert bastion["stack"] is None and bastion["egress"] == [] and bastion["bundle"] == "/media/stick"
    assert gpu["store"] == bastion["store"] == "/srv/models"


@pytest.mark.parametrize("found", [None, {"python": [3, 11, 2], "store": {}}, {**asdict(fit_facts()), "extra": 1}])
def test_what_cannot_be_read_is_no_empty_host(lab, me, lock, found):
    me.target.facts = found
    assert assess.problems(lab.run, me, lock) == [NOT_INSPECTED]
    assess.plan(lab.run, me)
    assert me.facts is None and me.plan is None


@pytest.mark.parametrize("python", [5, "x", ["a", "b"], [3, True]])
def test_a_version_of_another_form_is_no_inspection(lab, me, python):
    me.target.facts = {"python": python}
    assert assess.problems(lab.run, me, None) == [NOT_INSPECTED]


@pytest.mark.parametrize(("python", "said"), [(None, "python3 is missing"), ([3, 8, 1], "python3 is 3.8.1")])
def test_a_host_whose_python_is_too_old_is_told_that_alone(lab, me, lock, python, said):
    me.target.facts = {"python": python}
    (problem,) = assess.problems(lab.run, me, lock)
    assert said in problem


def test_a_fit_host_has_no_problems_and_an_unfit_one_has_its_own(lab, me, lock):
    assert assess.problems(lab.run, me, lock) == []
    assert me.report.to_space == embedding_space(lock) and me.made_of == lock.summary()
    odd = lab.run.hosts["gpu2"]
    odd.target.facts = asdict(changed(fit_facts(), "rrsync", False))
    assert "rrsync is missing" in assess.problems(lab.run, odd, lock)[0]
    bastion = lab.run.bastion
    bastion.target.facts = asdict(changed(fit_facts(), "rrsync", False))
    assert assess.problems(lab.run, bastion, lock) == [], "the bastion needs none"


def test_a_host_that_asks_for_signatures_is_a_problem_while_git_has_none(lab, me, lock, settings):
    signers = [("/etc/hf-offline/allowed_signers", 0, 0o100644)]
    me.target.facts = asdict(changed(fit_facts(), "signers", signers))
    (problem,) = assess.problems(lab.run, me, lock)
    assert "there is none of group_data/locks/lab.json" in problem
    lock_path(settings).with_name("lab.json.sig").write_text("L")
    assert assess.problems(lab.run, me, lock) == []


# ------------------------------------------------------------------------------------------------------ mixed spaces


@pytest.fixture
def moving(lab, settings, document):
    """A rollout into another space, of a fleet that serves the old one."""
    old = parse_lock(lock_text(document))
    document["serve"]["dtype"] = "float32"
    lab.run.lock, lab.run.is_rollout = parse_lock(lock_text(document)), True
    lock_path(settings).write_text(lock_text(document))
    return fresh(lab, serving_facts(old, settings))


def test_a_rollout_that_would_mix_two_spaces_is_refused_for_each_host(moving, me):
    assert moving.run.waves == [["gpu1"], ["gpu2", "gpu3"]]
    (problem,) = assess.problems(moving.run, me, moving.run.lock)
    assert "would mix them" in problem


def test_one_wave_for_all_is_not_refused(moving, me):
    moving.run.waves = [["gpu1", "gpu2", "gpu3"]]
    assert assess.problems(moving.run, me, moving.run.lock) == []


def test_a_command_that_is_no_rollout_does_not_ask(moving, me):
    moving.run.is_rollout = False
    assert assess.problems(moving.run, me, moving.run.lock) == []


def test_all_hosts_are_asked_only_where_the_space_changes(lab, moving, me):
    assess.problems(moving.run, me, moving.run.lock)
    assert [len(each.target.inspections) for each in moving.run.targets] == [1, 1, 1]


def test_where_the_space_stays_no_host_waits_for_another(lab, me, lock):
    lab.run.is_rollout = True
    assess.problems(lab.run, me, lock)
    assert [len(each.target.inspections) for each in lab.run.targets] == [1, 0, 0]


def test_a_host_that_is_not_connected_is_not_asked_and_hinders_as_unknown(moving, me):
    moving.run.waves = [["gpu1"], ["gpu2", "gpu3"]]
    moving.target("gpu3").connected = False
    assert assess.problems(moving.run, me, moving.run.lock)
    assert moving.target("gpu3").inspections == []


# -------------------------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize("count", [1, 4])
def test_each_host_is_planned_once_however_often_the_run_asks(settings, lock, desk, monkeypatch, count):
    """pyinfra loads the command once for each host, and each load goes on to every later operation."""
    names = [f"gpu{number}" for number in range(count)]
    lab = make_lab(settings, lock, gpus=names)
    planned = []

    def counting(facts, *more):
        planned.append(facts)
        return plan.plan_host(facts, *more)

    monkeypatch.setattr(assess, "plan_host", counting)
    for name in names:
        assess.plan(lab.run, lab.run.hosts[name])
        assess.plan(lab.run, lab.run.hosts[name])
        for _ in range(3):
            lab.run.changes_something()  # each host's lease asks
    assert len(planned) == count and all(isinstance(me.plan, plan.HostPlan) for me in lab.run.targets)


def test_a_host_is_planned_with_what_is_in_git(lab, me, lock, settings):
    lab.run.goldens.save(lock, None)
    facts = serving_facts(lock, settings, lab.run.tool.path("/srv/models"), lab.run.goldens.digest(lock))
    me.target.facts = asdict(facts)
    assess.inspect(me)
    assess.plan(lab.run, me)
    assert me.plan and me.plan.has_nothing_to_do
    lock_path(settings).with_name("lab.json.sig").write_text("L")
    other: HostRun = lab.run.hosts["gpu2"]
    other.target.facts = asdict(facts)
    assess.inspect(other)
    assess.plan(lab.run, other)
    assert other.plan and other.plan.stage_why == ("it has other signatures than git",)
