"""Prune: what nothing uses goes, with --dry nothing does, and both say what."""

from __future__ import annotations

import pytest

from tasks.control.operations.keeping import prune
from tasks.control.rules.states import State
from tests.unit.control.facts import changed
from tests.unit.control.harness import make_lab

NOTHING = {"ok": True, "releases": {}, "blobs": {}, "images": {}, "volumes": [], "kept": {}, "leftovers": []}
SOME = {
    **NOTHING,
    "releases": {"e" * 64: 1500, "d" * 64: 10},
    "blobs": {"a": 1000, "b": 500},
    "images": {"docai/backend:old": 2000},
    "volumes": ["hf-offline-eeeeeeeeeeee"],
    "kept": {"f" * 64: "it serves"},
}


@pytest.fixture
def lab(settings, lock):
    lab = make_lab(settings)
    lab.run.kept_lock = lock
    lab.target("gpu1").answers = {("prune", "do"): SOME, ("prune", "plan"): SOME}
    return lab


@pytest.fixture
def me(lab):
    return lab.run.hosts["gpu1"]


def test_what_nothing_uses_goes_and_is_counted(lab, me, lock):
    assert lab.perform("gpu1", prune).good
    assert me.state is State.PRUNED and me.why == f"release {'d' * 12}: 10 B, release {'e' * 12}: 1.5 kB"
    assert me.report.freed_bytes == 1500 and me.report.docker_freed_bytes == 2000
    heard = lab.target("gpu1").call("prune", "do")
    assert heard.document == {"keep": [lock.id], "blobs": sorted(lock.blobs())} and heard.options["keep"] == "3"


def test_a_dry_run_asks_what_would_go_and_deletes_nothing(lab, me):
    assert lab.rehearse("gpu1", prune).commands == 0
    assert lab.target("gpu1").heard() == ["prune plan"] and me.state is State.WOULD_CHANGE
    assert me.report.freed_bytes == 1500


@pytest.mark.parametrize("key", ["releases", "blobs", "images", "leftovers"])
def test_whatever_goes_is_a_change_and_nothing_is_none(lab, me, key):
    lab.target("gpu1").answers["prune", "do"] = NOTHING
    assert lab.perform("gpu1", prune).good and me.state is State.UNCHANGED
    some = ["x"] if key == "leftovers" else {"x": 1}
    lab.target("gpu1").answers["prune", "do"] = {**NOTHING, key: some}
    assert lab.perform("gpu1", prune).good and me.state is State.PRUNED


def test_without_a_lock_in_git_nothing_more_is_kept(lab):
    lab.run.kept_lock = None
    assert lab.perform("gpu1", prune).good
    assert lab.target("gpu1").call("prune", "do").document == {"keep": [], "blobs": []}


def test_a_host_without_a_store_is_empty_and_hears_nothing(lab, me):
    me.facts = changed(me.facts, "store_filesystem.exists", False)
    assert lab.perform("gpu1", prune).good and me.state is State.EMPTY and lab.target("gpu1").calls == []


def test_a_host_that_was_not_inspected_is_not_pruned(lab, me):
    me.facts = None
    assert not lab.perform("gpu1", prune).good and "could not be inspected" in me.why
    me.says(State.INCOMPLETE)
    lab.rehearse("gpu1", prune)
    assert me.state is State.FAILED and lab.target("gpu1").calls == []
