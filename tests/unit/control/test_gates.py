"""A gate opens on positive evidence alone: for as many failures as may be, and never where all failed."""

from __future__ import annotations

import pytest
from pyinfra.api.exceptions import PyinfraError

from tasks.control.gates import gate
from tasks.control.host_run import Evidence
from tasks.control.rules.states import State
from tests.unit.control.harness import make_lab


@pytest.fixture
def lab(settings, lock):
    return make_lab(settings, lock, gpus=("a", "b", "c"))


def confirm(lab, names):
    for name in names:
        lab.run.hosts[name].evidence.add(Evidence.CONFIRMED)


def passes(lab, name="c", before=("a", "b"), after=("c",), max_failed=0, evidence=Evidence.CONFIRMED):
    """Whether the gate lets this host through; it must say so, or hold it."""
    ran = lab.perform(name, gate, before=before, after=after, evidence=evidence, max_failed=max_failed)
    assert ran.commands == (not ran.good)
    return ran.good


@pytest.mark.parametrize(
    ("confirmed", "max_failed", "goes"),
    [("ab", 0, True), ("a", 0, False), ("a", 1, True), ("", 1, False), ("", 2, False), ("", 9, False)],
)
def test_a_gate_opens_for_as_many_failures_as_may_be_and_never_where_all_failed(lab, confirmed, max_failed, goes):
    confirm(lab, confirmed)
    assert passes(lab, max_failed=max_failed) is goes
    assert (lab.target("c").noops == [f"{len(confirmed)} of 2 confirmed"]) is goes
    assert (lab.run.hosts["c"].state is State.HELD) is not goes


def test_a_host_that_failed_anywhere_in_the_fleet_counts(lab):
    confirm(lab, "ab")
    assert passes(lab, after=("bastion",), name="bastion")
    lab.failed.add("c")  # it is in no wave before this gate
    assert not passes(lab, after=("bastion",), name="bastion")
    assert lab.run.hosts["bastion"].why == "held: c not confirmed"
    assert passes(lab, after=("bastion",), name="bastion", max_failed=1)


def test_failures_inside_and_outside_the_wave_add_up(lab):
    confirm(lab, "a")
    lab.failed.add("c")
    assert not passes(lab, after=("bastion",), name="bastion", max_failed=1)
    assert passes(lab, after=("bastion",), name="bastion", max_failed=2)


def test_a_host_that_regressed_counts_as_failed_though_pyinfra_goes_on_with_it(lab):
    confirm(lab, "ab")
    lab.run.hosts["c"].regressed = True
    assert not lab.failed and not passes(lab, after=("bastion",), name="bastion")
    assert lab.run.hosts["bastion"].why == "held: c not confirmed"


def test_a_host_of_both_sides_that_lacks_the_evidence_keeps_its_own_reason(lab):
    confirm(lab, "b")
    lab.run.hosts["a"].says(State.FAILED, "the disk is full")
    assert not passes(lab, name="a", before=("a", "b"), after=("a", "b"), max_failed=9)
    assert (lab.run.hosts["a"].state, lab.run.hosts["a"].why) == (State.FAILED, "the disk is full")
    assert lab.target("a").said == ["the disk is full"]
    lab.run.hosts["a"].why = ""
    passes(lab, name="a", before=("a", "b"), after=("a", "b"))
    assert lab.target("a").said[-1] == "not confirmed"


def test_other_evidence_is_not_this_evidence(lab):
    for name in "ab":
        lab.run.hosts[name].evidence |= {Evidence.FIT, Evidence.STAGED}
    assert not passes(lab) and passes(lab, evidence=Evidence.STAGED)


def test_a_host_that_is_not_behind_the_gate_passes_it_unasked(lab):
    assert lab.perform("a", gate, before=("a", "b"), after=("c",), evidence=Evidence.CONFIRMED).commands == 0
    assert lab.target("a").noops == []
    assert not passes(lab)


def test_a_dry_run_holds_nobody(lab):
    assert lab.rehearse("c", gate, before=("a", "b"), after=("c",), evidence=Evidence.CONFIRMED).commands == 0
    assert not passes(lab)


def test_a_gate_that_waits_for_nobody_is_an_error(lab):
    with pytest.raises(PyinfraError, match="of no host at all"):
        lab.perform("c", gate, before=(), after=("c",), evidence=Evidence.CONFIRMED)


def test_many_missing_hosts_are_named_in_few_words(settings, lock):
    names = [f"gpu{number}" for number in range(40)]
    lab = make_lab(settings, lock, gpus=names)
    assert not passes(lab, name="bastion", before=names, after=("bastion",))
    assert lab.run.hosts["bastion"].why == "held: gpu0 … gpu39 (40 hosts) not confirmed"
