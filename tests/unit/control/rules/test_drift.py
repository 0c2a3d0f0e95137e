"""What a host serves against what was confirmed there: each way to stray is named, and what is in sync is left alone."""

from __future__ import annotations

import pytest

from tasks.control.host_run import HostRun, Role
from tasks.control.rules import compose
from tasks.control.rules.drift import condition, confirmed_override, drift, space_on_host
from tasks.control.rules.plan import rollback_target
from tasks.control.summaries import describe_lease, show_facts
from tasks.shared.facts import Gpu
from tasks.shared.spaces import embedding_space
from tests.unit.control.facts import OVERRIDE, changed, fit_facts, serving_facts
from tests.unit.control.harness import CommandLine

SIGNED = {"lock": "a", "goldens": "b"}
SIGNERS_LIST = [("/x", 0, 0o100644)]


@pytest.fixture
def served(lock, settings):
    return serving_facts(lock, settings)


def test_what_is_in_sync_does_not_drift(served, settings):
    assert drift(served, settings) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("store.blobs", {}, "8 of its blobs missing"),
        ("stack.overrides", {OVERRIDE: "x"}, "override beside the stack"),
        ("container", None, "no container"),
        ("docker", None, "no Docker Engine answers"),
        ("container.detached", ["is not on its network n"], "the service is not on its network n. Next"),
        ("container.state", "exited", "the service is exited"),
        ("container.health", "starting", "the service is starting"),
        ("container.image", "sha256:0", "another image"),
        ("container.mounts", {}, "not what is mounted"),
        ("container.environment.HF_HUB_OFFLINE", "0", "another environment: HF_HUB_OFFLINE"),
        ("store.frozen", {"why": "x"}, "is frozen: x"),
        ("store.locks", {}, "missing or not readable"),
        ("store.states.RELEASE.verified", None, "not as they were proven"),
        ("store.not_readmitted", {"why": "x"}, "was not readmitted: x"),
        ("store.damaged", {"RELEASE": ["a/b"]}, "1 files of what it mounts are gone or others: a/b"),
        ("signers", SIGNERS_LIST, "what serves here has none"),
    ],
)
def test_each_drift_is_named(served, settings, lock, path, value, said):
    if isinstance(value, dict):
        value = {key.replace("RELEASE", lock.id): each for key, each in value.items()}
    found = drift(changed(served, path.replace("RELEASE", lock.id), value), settings)
    assert len(found) == 1 and said in found[0], found


def test_a_store_that_is_not_mounted_is_said_first_and_alone(served, settings):
    strict = settings.model_copy(update={"store_is_mount": True})
    assert drift(served, strict) == ["/srv/models is not mounted"]
    assert drift(changed(served, "store.mounted", True), strict) == []


def test_a_host_that_lost_its_record_of_what_serves_is_not_taken_for_an_empty_one(served, settings):
    assert drift(fit_facts(), settings) == []
    lost = changed(served, "store.current", None)
    assert "no record of what serves here" in drift(lost, settings)[0]
    beside = changed(fit_facts(), "stack.overrides", {OVERRIDE: f"{compose.MARKER}; release x\n"})
    assert "no record of what serves here" in drift(beside, settings)[0]
    theirs = changed(fit_facts(), "stack.overrides", {OVERRIDE: "services: {}\n"})
    assert drift(theirs, settings) == []


def test_settings_that_were_staged_and_turned_down_are_neither_drift_nor_where_a_rollback_goes(served, settings, lock):
    was = confirmed_override(served, lock.id)
    turned_down = was.replace("HF_HUB_OFFLINE: '1'", "HF_HUB_OFFLINE: '0'")
    assert was != turned_down
    staged = changed(served, f"store.states.{lock.id}.override", turned_down)
    no_record = changed(staged, f"store.states.{lock.id}.confirmed", None)
    assert len(drift(no_record, settings)) == 2  # as of a host that keeps no record
    assert drift(staged, settings) == []
    assert rollback_target(staged, settings, lock.id)[1] == was


def test_a_signed_release_does_not_drift_where_signatures_are_asked_for(served, settings, lock):
    asked = changed(served, "signers", SIGNERS_LIST)
    assert drift(asked, settings) != []
    assert drift(changed(asked, f"store.states.{lock.id}.signatures", SIGNED), settings) == []


def test_a_smoke_test_that_did_not_pass_changes_nothing_of_what_was_proven(served, settings, lock):
    candidate = changed(served, f"store.states.{lock.id}.has_candidate", True)
    assert drift(candidate, settings) == [] and rollback_target(candidate, settings, lock.id)[0].id == lock.id


@pytest.mark.parametrize("text", ["{{{: nonsense", "", "5", compose.MARKER, f"{compose.MARKER}\nservices: {{}}", "\0"])
def test_a_record_of_what_was_confirmed_that_is_none_of_ours_is_drift(served, settings, lock, text):
    odd = changed(served, f"store.states.{lock.id}.confirmed", text)
    assert "no record of its override" in drift(odd, settings)[-1]


def test_a_space_that_cannot_be_read_is_unknown_and_a_host_without_a_release_has_none(served, lock):
    assert space_on_host(served) == embedding_space(lock)
    assert space_on_host(changed(served, "store.locks", {lock.id: "{"})) == "unknown"
    assert space_on_host(fit_facts()) == "none"


def test_a_stopped_container_is_shown_as_stopped_whatever_its_last_health(served):
    assert condition(served.container) == "healthy"
    assert condition(changed(served.container, "state", "exited")) == "exited"
    assert condition(changed(served.container, "health", None)) == "running"


# ------------------------------------------------------------------------------------------- into the report's row


def row(facts, settings):
    me = HostRun("gpu1", Role.GPU, None, settings, CommandLine(()))
    me.facts = facts
    show_facts(me)
    return me.report


def test_a_lease_without_its_note_is_a_lease(served, settings):
    assert "lease.json is gone" in describe_lease({})
    assert row(served, settings).lease is None
    assert "lease.json is gone" in (row(changed(served, "store.lease", {}), settings).lease or "")


@pytest.mark.parametrize(("restarts", "said"), [(0, "healthy"), (1, "healthy, 1 restart"), (8, "healthy, 8 restarts")])
def test_a_service_that_crashes_in_a_loop_does_not_look_as_if_nothing_were(served, settings, restarts, said):
    assert row(changed(served, "container.restarts", restarts), settings).container == said


def test_the_report_names_what_runs_and_not_what_the_record_says(served, settings, lock):
    here = embedding_space(lock)
    shown = row(served, settings)
    assert (shown.release, shown.from_release, shown.space) == (lock.id, lock.id, here)
    half_way = changed(served, "store.current", "0" * 64)  # in the middle of a switch
    shown = row(half_way, settings)
    assert (shown.release, shown.space, shown.from_space) == (lock.id, here, "unknown")
    assert row(changed(half_way, "container.state", "exited"), settings).release is None


def test_the_report_names_the_gpus_the_room_and_what_else_is_kept(served, settings, lock):
    rich = changed(served, "gpus", [Gpu("H100", "550.54"), Gpu("H100", "550.54")])
    rich = changed(changed(rich, "store.releases", [lock.id, "0" * 64]), "store.previous", "0" * 64)
    shown = row(rich, settings)
    assert shown.gpu == "2 x H100, driver 550.54" and shown.disk_free_bytes == 10**12
    assert shown.kept == ["0" * 64] and shown.previous == "0" * 64 and shown.since == "then"
