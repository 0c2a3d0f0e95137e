"""Staging: push, admit, load, smoke-test, by the host's plan; the ledger adds up, or the host fails."""

from __future__ import annotations

import pytest

from tasks.control.git.files import FOLDER
from tasks.control.git.lockfile import lock_path
from tasks.control.host_run import Evidence
from tasks.control.operations.staging import check_ledger, stage
from tasks.control.rules import compose
from tasks.control.rules.plan import plan_host
from tasks.control.rules.states import State
from tasks.control.transports.protocol import Sent
from tasks.shared.errors import Refused
from tasks.shared.lock import lock_text, parse_lock
from tests.unit.control.facts import NOW, changed, fit_facts, serving_facts
from tests.unit.control.harness import make_lab

WHOLE = {"ok": True, "damaged": {}, "wrong": [], "missing": [], "bytes": 1, "verified": "now"}
SMOKED = {"ok": True, "cosine": {"mean": 0.9999}, "latency_ms": {"page": 12}, "versions": {}, "outbound_attempts": 0}


def total(lock):
    return sum(lock.blobs().values())


def answers_of(lock):
    """A host that has nothing of the release, and takes all of it well."""
    return {
        ("signed", "keep"): {"ok": True},
        ("store", "verify"): WHOLE,
        ("store", "ready"): {"ok": True, "missing": lock.blobs(), "partial": {}},
        ("store", "admit"): {"ok": True, "admitted": total(lock), "verified": "now"},
        ("engine", "load"): {"ok": True},
        ("engine", "candidate"): {"ok": True, "folder": "/srv/models/state/x/candidate"},
        ("engine", "smoke"): SMOKED,
        ("switch", "check"): {"ok": True, "recreate": False},
    }


@pytest.fixture
def lab(settings, lock, desk):
    lab = make_lab(settings, lock)
    (desk / FOLDER).mkdir(parents=True)
    lock_path(settings).write_text(lock_text(lock.document))
    lab.run.goldens.save(lock, None)
    lab.target("gpu1").answers = answers_of(lock)
    replan(lab)
    return lab


def replan(lab, facts=None, **more):
    me, run = lab.run.hosts["gpu1"], lab.run
    me.facts = facts or me.facts
    me.settings = me.settings.model_copy(update=more)
    text = compose.override(run.release, me.settings, run.tool.path("/srv/models"), True)
    goldens = run.goldens.digest(run.release)
    me.plan = plan_host(me.facts, me.settings, run.release, text, {"lock": None, "goldens": None}, goldens, NOW)


def serves(lab, lock):
    return serving_facts(lock, lab.run.settings, lab.run.tool.path("/srv/models"), lab.run.goldens.digest(lock))


@pytest.fixture
def me(lab):
    return lab.run.hosts["gpu1"]


def test_an_empty_host_gets_the_release_and_proves_it(lab, me, lock):
    assert lab.perform("gpu1", stage).good
    assert lab.target("gpu1").heard() == [
        "signed keep",
        "store verify",
        "store ready",
        "store admit",
        "engine load",
        "engine candidate",
        "engine smoke",
        "switch check",
    ]
    assert lab.run.transport.steps == ["prepare gpu1", "finish gpu1", "send gpu1"]
    assert me.state is State.READY and me.has(Evidence.STAGED)
    row = me.report
    assert (row.total_bytes, row.moved_bytes, row.there_bytes) == (total(lock), total(lock), 0)
    assert row.sent_bytes == total(lock) + 10 and row.verified == "now"
    assert (row.cosine, row.latency_ms, row.outbound_attempts) == (0.9999, 12, 0)
    assert [(phase.phase, phase.ok) for phase in row.phases] == [("stage", True)]


def test_the_smoke_test_runs_beside_the_stack_with_the_override_that_will_serve(lab, me, lock):
    assert lab.perform("gpu1", stage).good
    candidate, smoke = lab.target("gpu1").call("engine", "candidate"), lab.target("gpu1").call("engine", "smoke")
    text = compose.override(lock, me.settings, lab.run.tool.path("/srv/models"), True)
    assert candidate.document == {"compose.override.yaml": text, "goldens.json": lab.run.goldens.text()}
    assert smoke.options["file"] == [
        "/srv/docai/docker-compose.yml",
        "/srv/models/state/x/candidate/compose.override.yaml",
    ]
    assert smoke.options["project"] == f"hf-smoke-{lock.short}" and smoke.options["project-directory"] == "/srv/docai"
    assert smoke.options["within"] == "900"


@pytest.mark.parametrize("step", ["signed keep", "store ready", "store admit", "engine load", "engine candidate"])
def test_each_step_that_fails_stops_the_host_there(lab, me, step):
    program, verb = step.split()
    lab.target("gpu1").answers[program, verb] = {"ok": False, "error": {"where": "there", "what": "is wrong"}}
    assert not lab.perform("gpu1", stage).good
    assert (me.state, me.why) == (State.FAILED, "there: is wrong") and not me.has(Evidence.STAGED)
    assert lab.target("gpu1").heard()[-1] == step


@pytest.mark.parametrize("step", ["engine smoke", "switch check"])
def test_a_host_whose_smoke_test_or_switch_would_fail_is_not_staged(lab, me, step):
    program, verb = step.split()
    lab.target("gpu1").answers[program, verb] = {"ok": False, "error": {"where": "there", "what": "is wrong"}}
    assert not lab.perform("gpu1", stage).good and not me.has(Evidence.STAGED) and me.state is State.FAILED


def test_a_host_whose_switch_asks_for_a_new_container_remembers_it(lab, me):
    lab.target("gpu1").answers["switch", "check"] = {"ok": True, "recreate": True}
    assert lab.perform("gpu1", stage).good and me.recreate


def test_what_was_staged_before_and_serves_hears_nothing(lab, me, lock):
    replan(lab, serves(lab, lock))
    assert lab.perform("gpu1", stage).commands == 0
    assert me.has(Evidence.STAGED) and me.state is State.READY and lab.target("gpu1").calls == []
    assert (me.report.cosine, me.report.outbound_attempts, me.report.moved_bytes) == (1.0, 0, 0)
    assert me.report.there_bytes == me.report.total_bytes == total(lock)


def test_what_was_staged_before_and_does_not_serve_is_asked_whether_it_could_be_switched(lab, me, lock):
    replan(lab, changed(serves(lab, lock), "container.environment.HF_HUB_OFFLINE", "0"))
    assert lab.perform("gpu1", stage).good
    assert lab.target("gpu1").heard() == ["switch check"] and me.has(Evidence.STAGED)


def test_a_dry_run_pushes_nothing_and_says_how_much_it_would(lab, me, lock):
    lab.rehearse("gpu1", stage)
    assert me.state is State.WOULD_CHANGE and me.report.moved_bytes == total(lock)
    assert lab.target("gpu1").calls == [] and not me.has(Evidence.STAGED)


def test_a_host_that_is_unfit_is_left_alone(lab, me):
    me.says(State.UNFIT)
    assert lab.perform("gpu1", stage).commands == 0 and lab.target("gpu1").noops == ["unfit"]
    me.says(State.READY)
    me.plan = None
    assert lab.perform("gpu1", stage).commands == 0 and lab.target("gpu1").calls == []


def test_a_host_that_was_damaged_is_hashed_again_after_the_repair(lab, me, lock):
    blob = lock.image.layers[0].sha256
    damaged = {blob: {"what": "layer 0", "expected": blob, "found": "0" * 64}}
    replan(lab, serves(lab, lock), verify="full")
    answers = lab.target("gpu1").answers
    answers["store", "verify"] = [{**WHOLE, "damaged": damaged}, {**WHOLE, "verified": "later"}]
    answers["store", "ready"] = {"ok": True, "missing": {blob: 1000}, "partial": {}}
    answers["store", "admit"] = {"ok": True, "admitted": 1000, "verified": "now"}
    assert lab.perform("gpu1", stage).good
    assert lab.target("gpu1").heard().count("store verify") == 2 and me.report.verified == "later"
    assert me.report.repaired == ["layer 0"] and "damaged: layer 0" in lab.target("gpu1").said[0]
    answers["store", "verify"] = [{**WHOLE, "damaged": damaged}, {**WHOLE, "damaged": damaged}]
    assert not lab.perform("gpu1", stage).good and "is damaged again" in me.why


def test_what_was_whole_is_not_hashed_twice(lab, lock):
    replan(lab, serves(lab, lock), verify="full")
    answers = lab.target("gpu1").answers
    answers["store", "ready"] = {"ok": True, "missing": {}, "partial": {}}
    answers["store", "admit"] = {"ok": True, "admitted": 0, "verified": "now"}
    assert lab.perform("gpu1", stage).good and lab.target("gpu1").heard().count("store verify") == 1


def test_without_goldens_the_host_passes_and_is_not_proven(lab, me, lock):
    lab.run.goldens.path.unlink()
    replan(lab, fit_facts())
    assert not lab.perform("gpu1", stage).good
    assert me.state is State.NOT_PROVEN and not me.has(Evidence.STAGED)
    assert "pyinfra -y inventories/prod.py tasks/lock.py --data accept_goldens_from=gpu1" in me.why
    assert list(lab.target("gpu1").call("engine", "candidate").document) == ["compose.override.yaml"]
    lab.run.bastion.in_limit = False
    lab.perform("gpu1", stage)
    assert "--limit bastion too" in me.why


def test_online_the_host_loads_its_volume_before_the_smoke_test(lab, me, document, settings):
    document["serve"]["delivery"] = "online"
    lock = parse_lock(lock_text(document))
    lab.run.lock = lock
    lock_path(settings).write_text(lock_text(lock.document))
    lab.run.goldens.save(lock, None)
    replan(lab, delivery="online")
    target = lab.target("gpu1")
    target.answers = {**answers_of(lock), ("engine", "bring"): {"ok": True, "bytes": 77}}
    assert lab.perform("gpu1", stage).good and me.report.loaded_bytes == 77
    heard = target.heard()
    assert (
        heard.index("engine bring") < heard.index("engine smoke")
        and target.call("engine", "bring").document == lock.document
    )


# ----------------------------------------------------------------------------------------------------------- the ledger


@pytest.mark.parametrize(
    ("sent", "partial", "admitted", "good"),
    [
        (Sent(1000, 0, 1100), 0, 1000, True),
        (Sent(600, 400, 700), 0, 1000, True),  # resumed in mid-file
        (Sent(0, 0, 0), 1000, 1000, True),  # arrived before, not admitted
        (Sent(0, 0, 0), 0, 1000, False),  # an exit code of 0, and no byte
        (Sent(4, 0, 40), 0, 1000, False),
        (Sent(1000, 0, 1100), 0, 996, False),
        (Sent(0, 0, 0), 999, 1000, False),
    ],
)
def test_what_was_sent_and_what_was_there_is_the_lock_or_the_host_fails(me, lock, sent, partial, admitted, good):
    layer = lock.image.layers[0].sha256
    ready = {"missing": {layer: 1000}, "partial": {layer: partial} if partial else {}}
    if good:
        check_ledger(me, lock, ready, sent, admitted)
        assert me.report.moved_bytes == sent.moved and me.report.there_bytes == total(lock) - sent.moved
        return
    with pytest.raises(Refused, match="the ledger does not add up"):
        check_ledger(me, lock, ready, sent, admitted)
    assert me.report.sent_bytes is None


def test_a_push_that_moved_nothing_and_ended_well_fails_the_host(lab, me):
    lab.run.transport.sent = Sent(4, 0, 40)
    assert not lab.perform("gpu1", stage).good
    assert "the ledger does not add up" in me.why and not me.has(Evidence.STAGED)
