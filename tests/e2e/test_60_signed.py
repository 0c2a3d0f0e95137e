"""Signatures over two hosts: nothing goes forward or back that an allowed key did not sign, and nobody needs more than that."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tasks.shared.signatures import SIGNERS
from tests.e2e import fleet as four
from tests.e2e.conftest import BASTION, Run, hub, on
from tests.e2e.fleet import CANARY, GOLDENS, LOCK, REPO, STORE, container, current, journal, looks, refs, weights
from tests.lab import lab

HOSTS = four.HOSTS[:2]  # the second one is unlike the others: ssh as a user, containerd's image store
OTHERS = HOSTS[1:]

FILES = [LOCK, GOLDENS, *(path.with_name(f"{path.name}.sig") for path in (LOCK, GOLDENS))]
MACHINES = [BASTION, *HOSTS]
SIGN = ("--data", "sign=true")


def fleet(*words: str) -> Run:
    return four.fleet(*words, *[word for name in MACHINES for word in ("--limit", name)])


class Git:
    """The operator's side: two keys, and what was committed for each version of the model."""

    def __init__(self, folder: Path):
        self.folder, self.versions, self.order = folder, {}, {}
        for name in ("alice", "eve"):
            words = ["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
            subprocess.run(["ssh-keygen", *words], check=True)

    def allowed(self) -> str:
        return "release@example.org " + " ".join((self.folder / "alice.pub").read_text().split()[:2])

    def sign(self, *paths: Path, key: str = "alice") -> None:
        for path in paths:
            path.with_name(f"{path.name}.sig").unlink(missing_ok=True)
            words = ["-q", "-Y", "sign", "-n", "hf-offline", "-f", str(self.folder / key), str(path)]
            subprocess.run(["ssh-keygen", *words], check=True)

    def lock(self, version: str) -> None:
        hub("refs", {REPO: {"main": refs()[version]}})
        run = fleet("tasks/lock.py", "--data", "update=true")
        assert run.code == 0, run.said[-2000:]

    def commit(self, version: str) -> None:
        self.versions[version] = {path: path.read_text() for path in FILES}

    def checkout(self, version: str) -> None:
        for path, text in self.versions[version].items():
            path.write_text(text)


def clean_up() -> None:
    for path in FILES:
        path.unlink(missing_ok=True)
    for name in MACHINES:
        on(name, f"rm -rf {Path(SIGNERS).parent}")


def serving() -> dict[str, tuple]:
    """All that a refusal must leave as it was, by host."""
    return {name: (current(name), container(name), weights(name), len(journal(name))) for name in HOSTS}


def stored(name: str, folder: str) -> list[str]:
    return on(name, f"ls {STORE}/{folder} 2>/dev/null || true").split()


@pytest.fixture(scope="module")
def git(tmp_path_factory):
    """Hosts that have nothing, each with its administrator's list of who may sign; in the end all of it is gone again."""
    lab.up()
    hub("reset", {})
    clean_up()
    git = Git(tmp_path_factory.mktemp("keys"))
    for name in HOSTS:
        on(name, f"rm -rf {STORE}; docker rm -f light-backend-1 2>/dev/null; rm -f /srv/light/*override*")
    on(BASTION, f"rm -rf {STORE}/blobs {STORE}/releases {STORE}/state")
    for name in MACHINES:
        on(name, f"umask 022; mkdir {Path(SIGNERS).parent}; echo '{git.allowed()}' > {SIGNERS}")
    try:
        yield git
    finally:
        clean_up()


@pytest.fixture(scope="module")
def first(git):
    """The first deploys of version 1, as an operator comes to them: nothing signed, the lock signed, both signed."""
    runs: dict[str, tuple[Run, dict]] = {}

    def deploy(what: str) -> None:
        run = fleet("deploy.py", *SIGN)
        runs[what] = (run, {name: stored(name, "blobs") for name in MACHINES})

    git.lock("v1")
    deploy("nothing signed")
    git.sign(LOCK)
    deploy("the lock signed")
    git.sign(GOLDENS)
    deploy("both signed")
    assert runs["both signed"][0].code == 0, runs["both signed"][0].said[-3000:]
    git.commit("v1")
    git.lock("v2")  # the next one, proven and signed, and on no host yet
    git.sign(LOCK)
    assert fleet("deploy.py", *SIGN).host(BASTION)["state"] == "unsigned"
    git.sign(GOLDENS)
    git.commit("v2")
    return runs


@pytest.fixture
def on_v1(git, first):
    """Every host on version 1, signed, whatever a test left; -> its release id."""
    git.checkout("v1")
    if git.order != {name: looks(name) for name in HOSTS}:
        run = fleet("deploy.py", *SIGN)
        assert run.code == 0, run.said[-3000:]
        git.order = {name: looks(name) for name in HOSTS}
    assert len({current(name) for name in HOSTS}) == 1
    return current(CANARY)


def test_an_unsigned_lock_is_one_clear_error_before_any_host_is_touched(first):
    run, blobs = first["nothing signed"]
    assert run.code == 1 and "not signed, and sign is on" in run.said and "Traceback" not in run.said
    assert "ssh-keygen -Y sign -n hf-offline -f KEY group_data/locks/lab_fleet.json" in run.said
    assert not any(blobs[name] for name in HOSTS)


def test_new_goldens_stop_the_run_before_staging_and_say_how_to_sign_them(first):
    run, blobs = first["the lock signed"]
    assert run.code == 1 and run.host(BASTION)["state"] == "unsigned"
    command = "ssh-keygen -Y sign -n hf-offline -f KEY group_data/locks/lab_fleet.goldens.json"
    assert command in run.host(BASTION)["why"]
    assert {run.host(name)["state"] for name in HOSTS} == {"held"}
    assert blobs[BASTION] and not any(blobs[name] for name in HOSTS)


def test_a_signed_release_is_deployed(first):
    run, blobs = first["both signed"]
    assert {run.host(name)["state"] for name in HOSTS} == {"active"} and all(blobs.values())


def test_a_second_signed_run_changes_nothing(on_v1):
    before = serving()
    run = fleet("deploy.py", *SIGN)
    assert run.code == 0 and {run.host(name)["state"] for name in HOSTS} == {"unchanged"}
    assert serving() == before
    assert fleet("tasks/status.py").code == 0


def stripped(*paths: Path):
    def spoil(git: Git) -> None:
        for path in paths:
            path.unlink()

    return spoil


def wrong_key(git: Git) -> None:
    git.sign(LOCK, GOLDENS, key="eve")


def wrong_key_for_the_goldens(git: Git) -> None:
    git.sign(GOLDENS, key="eve")


# what was done to the files in git -> (words of the deploy, what every host then says)
REFUSED = {
    "no signatures, and sign off again": (stripped(*FILES[2:]), (), "unfit", "asks for signatures"),
    "no signature of the goldens, and sign off": (stripped(FILES[3]), (), "unfit", "lab_fleet.goldens.json"),
    "somebody else's key": (wrong_key, SIGN, "failed", "does not allow the key that signed"),
    "somebody else's key for the goldens": (wrong_key_for_the_goldens, SIGN, "failed", "lab_fleet.goldens.json"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_every_host_refuses_and_serves_on(git, on_v1, what):
    spoil, words, state, says = REFUSED[what]
    before, blobs = serving(), {name: stored(name, "blobs") for name in HOSTS}
    git.checkout("v2")
    spoil(git)
    run = fleet("deploy.py", *words)
    assert run.code == 1
    for name in HOSTS:
        assert run.host(name)["state"] == state and says in run.host(name)["why"], run.host(name)
    assert serving() == before
    assert {name: stored(name, "blobs") for name in HOSTS} == blobs
    assert {tuple(stored(name, "releases")) for name in HOSTS} == {(on_v1,)}


@pytest.mark.parametrize("path", [LOCK, GOLDENS], ids=["lock", "goldens"])
def test_a_file_that_was_changed_after_it_was_signed_is_refused(git, on_v1, path):
    before = serving()
    git.checkout("v2")
    path.write_text(path.read_text().replace("\n", "\n ", 1))
    run = fleet("deploy.py", *SIGN)
    assert run.code == 1 and "has a signature that does not fit" in run.said and "Traceback" not in run.said
    assert serving() == before


def test_the_bastion_proves_nothing_that_is_not_signed(git, on_v1):
    git.lock("words")
    git.sign(LOCK, key="eve")
    run = fleet("deploy.py", *SIGN)
    assert run.code == 1 and "does not allow the key" in run.host(BASTION)["why"]
    assert {run.host(name)["state"] for name in HOSTS} == {"held"}
    assert json.loads(GOLDENS.read_text())["release"] == on_v1


LISTS = {
    "that everybody may write": (f"chmod 0666 {SIGNERS}", "can be changed by others than root"),
    "that is gone": (f"mv {SIGNERS} /root/signers", "has no /etc/hf-offline/allowed_signers"),
}


@pytest.mark.parametrize("what", LISTS)
def test_a_host_with_a_list(git, on_v1, what):
    script, says = LISTS[what]
    before = serving()
    git.checkout("v2")
    on(CANARY, script)
    try:
        run = fleet("deploy.py", *SIGN)
    finally:
        on(CANARY, f"test ! -e /root/signers || mv /root/signers {SIGNERS}; chmod 0644 {SIGNERS}")
    assert run.code == 1 and run.host(CANARY)["state"] == "unfit" and says in run.host(CANARY)["why"]
    assert {run.host(name)["state"] for name in OTHERS} == {"held"} and serving() == before


def test_rollback_works_with_what_the_hosts_keep(git, on_v1):
    git.checkout("v2")
    run = fleet("deploy.py", *SIGN)
    assert run.code == 0, run.said[-3000:]
    assert on_v1 not in {current(name) for name in HOSTS}
    for path in FILES[2:]:
        path.unlink()
    back = fleet("tasks/rollback.py")
    assert back.code == 0, back.said[-3000:]
    assert {current(name) for name in HOSTS} == {on_v1}
    assert {back.host(name)["state"] for name in HOSTS} == {"active"}


def test_rollback_moves_nobody_when_one_host_keeps_no_signature(git, on_v1):
    git.checkout("v2")
    assert fleet("deploy.py", *SIGN).code == 0
    on(CANARY, f"rm {STORE}/state/{on_v1}/signed.json")
    before = serving()
    run = fleet("tasks/rollback.py")
    assert run.code == 1 and "has none on this machine" in run.host(CANARY)["why"]
    assert {run.host(name)["state"] for name in OTHERS} == {"held"} and serving() == before


def test_a_switch_asks_again_whatever_was_staged(git, on_v1):
    """As a key that leaves the list between two runs: the release is staged, whole, and not activated."""
    git.checkout("v2")
    assert fleet("deploy.py", *SIGN).code == 0
    assert fleet("tasks/rollback.py").code == 0
    before = serving()
    eve = "release@example.org " + " ".join((git.folder / "eve.pub").read_text().split()[:2])
    on(CANARY, f"cp -p {SIGNERS} /root/signers; echo '{eve}' > {SIGNERS}")
    try:
        run = fleet("deploy.py", *SIGN)
    finally:
        on(CANARY, f"mv /root/signers {SIGNERS}")
    assert run.code == 1 and "does not allow the key that signed" in run.host(CANARY)["why"]
    assert {run.host(name)["state"] for name in OTHERS} == {"held"} and serving() == before


def test_status_tells_what_serves_without_a_signature_and_a_deploy_brings_it(on_v1):
    ids = {name: container(name) for name in HOSTS}
    on(CANARY, f"rm {STORE}/state/{on_v1}/signed.json")
    status = fleet("tasks/status.py")
    assert status.code == 1 and "what serves here has none" in status.host(CANARY)["why"]
    assert {status.host(name)["state"] for name in OTHERS} == {"in sync"}
    assert fleet("deploy.py", *SIGN).code == 0 and fleet("tasks/status.py").code == 0
    assert {name: container(name) for name in HOSTS} == ids
