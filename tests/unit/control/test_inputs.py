"""What a command reads before any host is touched, and what it refuses then."""

from __future__ import annotations

import subprocess

import pytest
from pyinfra.api.exceptions import PyinfraError

from tasks.control import inputs
from tasks.control.git.files import FOLDER
from tasks.control.git.lockfile import lock_path
from tasks.control.git.signatures import check_signatures
from tasks.shared.errors import Refused
from tasks.shared.lock import lock_text
from tests.unit.control.harness import make_lab


@pytest.fixture
def git(settings, lock, desk):
    """The lock in git."""
    (desk / FOLDER).mkdir(parents=True)
    path = lock_path(settings)
    path.write_text(lock_text(lock.document))
    return path


@pytest.fixture
def run(settings):
    return make_lab(settings, gpus=("a", "b")).run


def change(run, **settings):
    for me in run.hosts.values():
        me.settings = me.settings.model_copy(update=settings)


def test_a_deploy_has_the_lock_and_its_waves(run, git, lock):
    run.waves = []
    inputs.read_rollout(run)
    assert run.lock == lock and run.is_rollout and run.waves == [["a"], ["b"]]


def test_a_rollback_has_its_own_waves_and_needs_no_lock(run, desk):
    run.hosts["b"].wave = 1
    inputs.read_rollback(run)
    assert run.lock is None and run.is_rollout and run.waves == [["a", "b"]]


def test_a_lock_is_read_where_there_is_one(run, desk, git, lock):
    inputs.read_lock_if_there(run)
    assert run.lock == lock
    git.unlink()
    other = make_lab(run.settings).run
    inputs.read_lock_if_there(other)
    assert other.lock is None
    with pytest.raises(Refused, match="does not exist"):
        inputs.read_release(other)


def test_status_holds_the_hosts_against_the_lock_in_git(run, git, lock):
    inputs.note_lock_in_git(run)
    assert run.lock_in_git == lock.id and run.lock is None
    git.write_text("{")
    inputs.note_lock_in_git(run)
    assert run.lock_in_git is None


def test_unlock_needs_the_leases_id(run):
    with pytest.raises(PyinfraError, match="needs the lease's id"):
        inputs.need_lease_id(run)
    change(run, lease="x12345678")
    assert inputs.need_lease_id(run) is None


def test_prune_keeps_the_lock_in_git_and_is_not_for_a_part_of_the_fleet(run, git, lock):
    inputs.read_for_prune(run)
    assert run.kept_lock == lock and run.lock is None
    run.fleet = ["a", "b", "c"]
    with pytest.raises(PyinfraError, match="--limit leaves out hosts that one may hold"):
        inputs.read_for_prune(run)
    run.bastion.in_limit = False
    assert inputs.read_for_prune(run) is None


def test_a_bundle_needs_its_drive(run, git, lock):
    with pytest.raises(PyinfraError, match="needs the drive's directory"):
        inputs.read_for_bundle(run)
    change(run, bundle="/media/stick")
    inputs.read_for_bundle(run)
    assert run.lock == lock


def test_a_lock_is_not_made_without_a_hub_and_goldens_are_accepted_of_a_host_of_the_run(run):
    assert inputs.check_lock_command(run) is None
    change(run, source="bundle")
    with pytest.raises(PyinfraError, match=r"no Hub here: .*cp lock\.json group_data/locks/lab\.json"):
        inputs.check_lock_command(run)
    change(run, accept_goldens_from="c")
    with pytest.raises(PyinfraError, match="no host of this run; expected one of a, b"):
        inputs.check_lock_command(run)
    change(run, accept_goldens_from="b")
    inputs.check_lock_command(run)
    assert run.reported == ["b"]


# --------------------------------------------------------------------------------------------------------- signatures


def sign(path, namespace="hf-offline"):
    key = path.parent / "key"
    if not key.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    words = ["ssh-keygen", "-q", "-Y", "sign", "-n", namespace, "-f", key, path]
    subprocess.run(words, check=True, capture_output=True)


def test_with_sign_an_unsigned_lock_is_refused_before_any_host_is_touched(settings, git, lock):
    asked = settings.model_copy(update={"sign": True})
    with pytest.raises(Refused, match=r"lab\.json: not signed, and sign is on.*Next: ssh-keygen -Y sign"):
        check_signatures(asked, lock)
    check_signatures(settings, lock)
    sign(git)
    check_signatures(asked, lock)


def test_a_signature_of_other_bytes_or_another_use_is_refused_with_or_without_sign(settings, git, lock):
    sign(git)
    check_signatures(settings, lock)
    signature = git.with_name("lab.json.sig")
    good = signature.read_bytes()
    signature.unlink()
    sign(git, "email")
    with pytest.raises(Refused, match="has a signature that does not fit"):
        check_signatures(settings, lock)
    signature.write_bytes(good)
    git.write_text(lock_text(lock.document) + "\n")
    with pytest.raises(Refused, match=r"does not fit.*Next: rm group_data/locks/lab\.json\.sig &&"):
        check_signatures(settings, lock)


def test_a_lock_that_is_signed_in_a_form_of_its_own_is_refused(settings, git, lock):
    git.write_text(lock_text(lock.document) + "\n")
    check_signatures(settings, lock)
    sign(git)
    with pytest.raises(Refused, match="is signed in a form of its own"):
        check_signatures(settings, lock)
