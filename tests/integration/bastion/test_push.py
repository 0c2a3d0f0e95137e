"""Push: real rsync over real ssh to a user who can write below incoming/ and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.conftest import USER

pytestmark = pytest.mark.integration


def send(bastion, sshd, blobs, ok=True, **more):
    words = [
        "--host",
        "gpu1",
        "--to",
        f"{USER}@127.0.0.1",
        "--port",
        sshd["port"],
        "--alias",
        f"[127.0.0.1]:{sshd['port']}",
    ]
    document = {"blobs": blobs, "known_hosts": more.get("known_hosts", sshd["known_hosts"])}
    return bastion.run("push", "send", *words, "--within", more.get("deadline", 60), document=document, ok=ok)


def test_a_push_brings_exactly_what_lacks_and_admit_takes_it(bastion, host, sshd, document, lock):
    need = host.run("store", "ready", document=document)["missing"]
    answer = send(bastion, sshd, need)
    assert answer["moved"] == sum(need.values()) and answer["sent"] > 0
    host.run("store", "admit", "--user", USER, document=document)
    assert host.run("store", "ready", document=document)["missing"] == {}


def test_a_push_resumes_in_mid_file(bastion, host, sshd, contents):
    data = os.urandom(8 << 20)
    sha = hashlib.sha256(data).hexdigest()
    (bastion.store / "blobs" / sha).write_bytes(data)
    half = host.store / "incoming" / sha
    half.write_bytes(data[: 5 << 20])
    os.chown(half, *[__import__("pwd").getpwnam(USER).pw_uid] * 2)
    answer = send(bastion, sshd, {sha: len(data)})
    assert answer["moved"] < 0.45 * len(data)
    assert half.read_bytes() == data


@pytest.fixture
def large(bastion):
    """A blob that takes seconds under a limit, as {sha256: size}."""
    data = os.urandom(4 << 20)
    sha256 = hashlib.sha256(data).hexdigest()
    (bastion.store / "blobs" / sha256).write_bytes(data)
    return {sha256: len(data)}


def slow(bastion, sshd, blobs, within):
    """A push that runs, so slowly that `status` has seen it."""
    words = [sys.executable, bastion.tool, "push", "send", "--store", bastion.store, "--host", "gpu1", "--limit", 200]
    words += ["--to", f"{USER}@127.0.0.1", "--port", sshd["port"], "--alias", f"[127.0.0.1]:{sshd['port']}"]
    request = json.dumps({"blobs": blobs, "known_hosts": sshd["known_hosts"]})
    process = subprocess.Popen(
        [str(word) for word in [*words, "--within", within]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdin.write(request)
    process.stdin.close()
    deadline = time.monotonic() + 20
    while not (running := bastion.run("push", "status")["running"]):
        assert process.poll() is None and time.monotonic() < deadline, "it was never seen"
    assert running["gpu1"]["host"] == "gpu1" and 0 < running["gpu1"]["done"] <= running["gpu1"]["total"] == 4 << 20
    return process


def test_a_push_that_failed_is_not_shown_as_running(bastion, host, sshd, large):
    process = slow(bastion, sshd, large, within=4)
    assert not json.loads(process.stdout.read())["ok"] and process.wait() == 1
    assert bastion.run("push", "status")["running"] == {}
    assert not (bastion.store / "push/gpu1.json").exists()


def test_a_push_that_was_killed_is_not_shown_as_running(bastion, host, sshd, large):
    process = slow(bastion, sshd, large, within=30)
    process.kill()
    process.wait()
    assert (bastion.store / "push/gpu1.json").exists(), "the control: its note is still there"
    assert bastion.run("push", "status")["running"] == {}


def test_a_push_ends_with_its_controller(bastion, host, sshd, large):
    process = slow(bastion, sshd, large, within=30)
    process.stdout.close()
    assert process.wait(timeout=20) == 1
    assert bastion.run("push", "status")["running"] == {}
    assert bastion.run("push", "idle", "--host", "gpu1")["ok"]


def test_a_blob_that_the_bastion_lacks_is_said_at_once(bastion, sshd):
    answer = send(bastion, sshd, {"0" * 64: 3}, ok=False)
    assert "lacks 1 blobs" in answer["error"]["what"] and answer["error"]["found"] == f"without {'0' * 64}"
    answer = send(bastion, sshd, {"1" * 64: 3, "0" * 64: 3, "2" * 64: 3}, ok=False)
    assert answer["error"]["found"] == f"without {'0' * 64} and 2 more"


def test_a_wrong_host_key_is_refused(bastion, host, sshd, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    public = " ".join((tmp_path / "other.pub").read_text().split()[:2])
    blob = next((bastion.store / "blobs").iterdir())
    known = f"[127.0.0.1]:{sshd['port']} {public}\n"
    answer = send(bastion, sshd, {blob.name: blob.stat().st_size}, ok=False, known_hosts=known)
    assert "CHANGED" in answer["error"]["found"] or "verification failed" in answer["error"]["found"]
    assert not list((host.store / "incoming").iterdir())


def client(bastion, sshd, key=None):
    """ssh's words for the push user, with the push key or another one. `-F none`: nothing of this machine's own."""
    key = key or f"{bastion.store}/push/id_ed25519"
    options = [
        "ssh",
        "-F",
        "none",
        "-p",
        str(sshd["port"]),
        "-i",
        str(key),
        "-o",
        "BatchMode=yes",
        "-o",
        "IdentitiesOnly=yes",
    ]
    return [*options, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]


def ssh(bastion, sshd, *command, key=None):
    words = [*client(bastion, sshd, key), f"{USER}@127.0.0.1", *command]
    return subprocess.run(words, capture_output=True, text=True, timeout=30)


def rsync(bastion, sshd, *words, key=None):
    shell = " ".join(client(bastion, sshd, key))
    return subprocess.run(["rsync", "-a", "-e", shell, *words], capture_output=True, text=True, timeout=30)


@pytest.fixture
def free_key(tmp_path, sshd):
    """A key of the same user on the same sshd, without the push key's limits: what it can do is what the limits stop."""
    path = tmp_path / "free"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    keys = Path(f"/var/lib/{USER}/.ssh/authorized_keys")
    limited = keys.read_text()
    keys.write_text(limited + path.with_suffix(".pub").read_text())
    yield path
    keys.write_text(limited)


def test_the_push_key_opens_no_shell(bastion, sshd, tmp_path, free_key):
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    assert "uid=" not in ssh(bastion, sshd, "id").stdout
    assert ssh(bastion, sshd, "touch", f"{open_to_all}/planted").returncode != 0
    assert not (open_to_all / "planted").exists()
    assert "uid=" in ssh(bastion, sshd, "id", key=free_key).stdout, "a key without its limits does"
    assert ssh(bastion, sshd, "touch", f"{open_to_all}/planted", key=free_key).returncode == 0
    assert (open_to_all / "planted").exists()


def test_the_push_key_reads_deletes_and_escapes_nothing(bastion, host, sshd, tmp_path, free_key):
    incoming, there = host.store / "incoming", f"{USER}@127.0.0.1:"
    (incoming / "kept").write_text("kept")
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o777)  # only the key's limits keep the push user out
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    (tmp_path / "one/x").write_text("x")
    assert rsync(bastion, sshd, f"{there}kept", str(tmp_path / "read")).returncode != 0
    assert not (tmp_path / "read").exists()
    rsync(bastion, sshd, "-r", "--delete", f"{tmp_path}/empty/", there)
    assert (incoming / "kept").exists()
    for path in ("../blobs/", "/etc/", "../../", f"{outside}/"):
        rsync(bastion, sshd, f"{tmp_path}/one/x", there + path)
    # rrsync may take an absolute path as one below incoming/; what counts is that nothing lies outside of it
    assert not (host.store / "blobs" / "x").exists() and not os.path.exists("/etc/x")
    assert not (host.root / "x").exists() and not any(outside.iterdir())
    # The same words with a key that has no limits do all of it: a dead sshd would not.
    assert rsync(bastion, sshd, f"{there}{incoming}/kept", str(tmp_path / "read"), key=free_key).returncode == 0
    assert (tmp_path / "read").read_text() == "kept"
    assert rsync(bastion, sshd, f"{tmp_path}/one/x", f"{there}{outside}/", key=free_key).returncode == 0
    assert (outside / "x").read_text() == "x"
    rsync(bastion, sshd, "-r", "--delete", f"{tmp_path}/empty/", f"{there}{incoming}/", key=free_key)
    assert not (incoming / "kept").exists()


def test_the_push_user_cannot_change_its_own_key(sshd):
    path = f"/var/lib/{USER}/.ssh/authorized_keys"
    done = subprocess.run(
        ["setpriv", "--reuid", USER, "--clear-groups", "sh", "-c", f"echo x >> {path}"], capture_output=True
    )
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("key", "source"),
    [
        ("ssh-ed25519 AAAA\nssh-ed25519 BBBB", "*"),
        ("ssh-ed25519 AAAA", '*" ssh-rsa AAAA'),
        ('command="sh" ssh-ed25519 AAAA', "*"),
    ],
)
def test_a_bastion_that_lies_gets_no_second_key(host, key, source):
    answer = host.call("setup", "--store", host.store, "--user", USER, "--key", key, "--from", source, ok=False)
    assert "is no" in answer["error"]["what"]
    assert not os.path.exists(f"/var/lib/{USER}/.ssh/authorized_keys")


def test_hosts_that_ask_at_once_get_one_key(bastion):
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: bastion.run("push", "key")["key"], range(8)))
    assert len(set(keys)) == 1
