"""A lock keeps its commits until the operator asks for others; what moved upstream is told, and nothing half is written."""

from __future__ import annotations

import copy
import logging

import pytest

from tasks.control.git.lockfile import lock_path, old_lock, read_lock
from tasks.control.operations.locking import accept_goldens, lock, what_moved
from tasks.control.rules.states import State
from tasks.shared.lock import lock_text, parse_lock
from tests.unit.control.harness import make_lab

WORDS = ("-y", "inventories/prod.py", "tasks/lock.py")
EMBEDDINGS = {"class": "cpu/bfloat16", "queries": ["q"], "vectors": {"query0": {"shape": [1, 2], "f16": "AAAAAA=="}}}


@pytest.fixture
def upstream(document):
    """What the Hub has: the same models."""
    return {"models": copy.deepcopy(document["models"]), "left_out": {"docai/colpali-tiny": ["README.md"]}}


@pytest.fixture
def lab(settings, document, upstream, desk):
    lab = make_lab(settings, words=WORDS)
    lab.target("bastion").answers = {
        ("setup", ""): {"ok": True},
        ("fetch", "resolve"): lambda call: {"ok": True, **upstream},
        ("export", "image"): {"ok": True, "image": document["image"]},
    }
    return lab


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="pyinfra")
    return lambda: caplog.text


def write(lab, settings, old=None):
    return lab.perform("bastion", lock, old=old).good


def moved(upstream):
    """Upstream has another commit of the served model, with another file."""
    model = upstream["models"][0]
    model["commit"] = "c" * 40
    model["files"]["adapter_config.json"] = {**model["files"]["adapter_config.json"], "size": 99}


def test_the_first_lock_is_written_and_can_be_read(lab, settings, document, said):
    assert write(lab, settings)
    me = lab.run.bastion
    found = read_lock(settings, "inventories/prod.py")
    assert lock_path(settings).read_text() == lock_text(document)
    assert me.state is State.WRITTEN and me.goes_to == found.id and f"release {found.short}, for git" in said()
    assert "docai/colpali-tiny: left out README.md" in said()
    asked = lab.target("bastion").call("fetch", "resolve").document
    assert asked["models"] == [{"repo": "docai/colpali-tiny", "revision": "main"}]


def test_the_same_again_changes_nothing(lab, settings, said):
    write(lab, settings)
    before = lock_path(settings).stat().st_mtime_ns
    assert write(lab, settings, old_lock(settings))
    assert lab.run.bastion.state is State.UNCHANGED and lock_path(settings).stat().st_mtime_ns == before
    assert "as it was" in said()


def test_a_branch_that_moved_is_told_and_the_lock_stays(lab, settings, upstream, said):
    write(lab, settings)
    moved(upstream)
    assert write(lab, settings, old_lock(settings))
    assert lab.run.bastion.state is State.UNCHANGED and read_lock(settings, "i").models[0].commit == "a" * 40
    assert "moved upstream: docai/colpali-tiny: aaaaaaaaaaaa -> cccccccccccc, 1 files, 99 bytes" in said()
    assert "the lock stays. Next: pyinfra -y inventories/prod.py tasks/lock.py --data update=true" in said()


def test_with_update_the_lock_follows_and_says_that_the_space_changes(lab, settings, upstream, said, document):
    write(lab, settings)
    lock_path(settings).with_name("lab.json.sig").write_text("signed")
    moved(upstream)
    upstream["models"][0]["files"]["adapter_config.json"]["sha256"] = "d" * 64
    upstream["models"][0]["files"]["adapter_config.json"]["etag"] = "d" * 64
    lab.run.bastion.settings = settings.model_copy(update={"update": True, "sign": True})
    assert write(lab, settings, old_lock(settings))
    assert lab.run.bastion.state is State.WRITTEN and read_lock(settings, "i").models[0].commit == "c" * 40
    assert "embedding space: " in said() and "the lock stays" not in said()
    assert "Next: ssh-keygen -Y sign" in said() and not lock_path(settings).with_name("lab.json.sig").exists()


def test_another_question_takes_new_commits_without_update(lab, settings, upstream, document):
    write(lab, settings)
    moved(upstream)
    old = old_lock(settings)
    assert old is not None
    old["asked"] = {"docai/colpali-tiny": "v1"}
    assert write(lab, settings, old) and read_lock(settings, "i").models[0].commit == "c" * 40


def test_a_lock_that_would_be_wrong_is_not_written(lab, settings, upstream):
    upstream["models"][0]["commit"] = "main"
    assert not write(lab, settings)
    assert lab.run.bastion.state is State.FAILED and "40-hex commit" in lab.run.bastion.why
    assert not lock_path(settings).exists()


def test_a_hub_that_does_not_answer_is_a_plain_failure(lab, settings):
    lab.target("bastion").answers["fetch", "resolve"] = None
    assert not write(lab, settings) and "`fetch resolve` gave no answer" in lab.run.bastion.why
    assert not lock_path(settings).exists()


def test_an_unfit_bastion_writes_no_lock(lab, settings):
    lab.run.bastion.says(State.UNFIT)
    assert lab.perform("bastion", lock, old=None).commands == 0 and not lock_path(settings).exists()


# ------------------------------------------------------------------------------------------------------------- --dry


@pytest.fixture
def dry(settings, lab):
    lab.run.command_line = make_lab(settings, words=("--dry", "inventories/prod.py", "tasks/lock.py")).run.command_line
    return lab


def compare(lab, old):
    assert lab.rehearse("bastion", lock, old=old).commands == 0
    return lab.run.bastion.state


def test_a_dry_run_says_whether_the_lock_would_change(dry, settings, document, upstream):
    old = copy.deepcopy(document)
    assert compare(dry, None) is State.WOULD_CHANGE
    assert compare(dry, old) is State.UP_TO_DATE
    moved(upstream)
    assert compare(dry, old) is State.UP_TO_DATE and "aaaaaaaaaaaa -> cccccccccccc" in dry.run.bastion.why
    dry.run.bastion.settings = settings.model_copy(update={"update": True})
    assert compare(dry, old) is State.WOULD_CHANGE
    assert not lock_path(settings).exists()


@pytest.mark.parametrize("change", [{"asked": {"docai/colpali-tiny": "v1"}}, {"serve": {}}])
def test_a_dry_run_sees_other_questions_and_settings(dry, document, change):
    assert compare(dry, {**document, **change}) is State.WOULD_CHANGE


def test_a_dry_run_without_an_answer_fails_its_host_alone(dry):
    dry.target("bastion").answers["fetch", "resolve"] = {"ok": False, "error": {"where": "Hub", "what": "is gone"}}
    assert compare(dry, None) is State.FAILED and dry.run.bastion.why == "Hub: is gone"


def test_a_repository_that_is_new_moved_from_nothing(document):
    (line,) = what_moved({"models": document["models"][:1]}, {"models": document["models"]})
    assert line.startswith("docai/colpaligemma-tiny-base: nothing -> bbbbbbbbbbbb, 2 files, ")


# ---------------------------------------------------------------------------------------------------- accepted goldens


def test_a_hosts_embeddings_become_the_goldens_of_the_locked_release(lab, settings, document):
    write(lab, settings)
    release = parse_lock(lock_text(document))
    lab.target("gpu1").answers["engine", "embeddings"] = {"ok": True, "embeddings": EMBEDDINGS}
    assert lab.perform("gpu1", accept_goldens).good
    me = lab.run.hosts["gpu1"]
    assert lab.run.goldens.belong_to(release) and me.state is State.WRITTEN and me.goes_to == release.id
    assert lab.target("gpu1").call("engine", "embeddings").options["release"] == release.id


def test_without_a_lock_no_goldens_are_accepted(lab, settings):
    assert not lab.perform("gpu1", accept_goldens).good
    assert "does not exist" in lab.run.hosts["gpu1"].why and lab.target("gpu1").calls == []
    assert not lab.run.goldens.path.exists()
