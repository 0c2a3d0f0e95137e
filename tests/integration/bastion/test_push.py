"""Push: real rsync over real ssh to a user who can write below incoming/ and nothing else."""

from __future__ import annotations

import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

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


def test_a_blob_that_the_bastion_lacks_is_said_at_once(bastion, sshd):
    answer = send(bastion, sshd, {"0" * 64: 3}, ok=False)
    assert "lacks 1 blobs" in answer["error"]["what"]


def test_a_wrong_host_key_is_refused(bastion, host, sshd, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    public = " ".join((tmp_path / "other.pub").read_text().split()[:2])
    blob = next((bastion.store / "blobs").iterdir())
    known = f"[127.0.0.1]:{sshd['port']} {public}\n"
    answer = send(bastion, sshd, {blob.name: blob.stat().st_size}, ok=False, known_hosts=known)
    assert "CHANGED" in answer["error"]["found"] or "verification failed" in answer["error"]["found"]
    assert not list((host.store / "incoming").iterdir())


def ssh(bastion, sshd, *command):
    options = ["-F", "none", "-p", str(sshd["port"]), "-i", f"{bastion.store}/push/id_ed25519", "-o", "BatchMode=yes"]
    options += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    return subprocess.run(["ssh", *options, f"{USER}@127.0.0.1", *command], capture_output=True, text=True, timeout=30)


def rsync(bastion, sshd, *words):
    shell = f"ssh -F none -p {sshd['port']} -i {bastion.store}/push/id_ed25519 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    return subprocess.run(["rsync", "-a", "-e", shell, *words], capture_output=True, text=True, timeout=30)


def test_the_push_key_opens_no_shell(bastion, sshd, tmp_path):
    assert "uid=" not in ssh(bastion, sshd, "id").stdout
    assert ssh(bastion, sshd, "touch", f"{tmp_path}/planted").returncode != 0
    assert not (tmp_path / "planted").exists()


def test_the_push_key_reads_deletes_and_escapes_nothing(bastion, host, sshd, tmp_path):
    (host.store / "incoming" / "kept").write_text("kept")
    there = f"{USER}@127.0.0.1:"
    assert rsync(bastion, sshd, f"{there}kept", str(tmp_path / "read")).returncode != 0
    assert not (tmp_path / "read").exists()
    (tmp_path / "empty").mkdir()
    rsync(bastion, sshd, "--delete", f"{tmp_path}/empty/", there)
    assert (host.store / "incoming" / "kept").exists()
    (tmp_path / "empty" / "x").write_text("x")
    for outside in ("../blobs/", "/etc/", "../../"):
        rsync(bastion, sshd, f"{tmp_path}/empty/x", there + outside)
    # rrsync may take an absolute path as one below incoming/; what counts is that nothing lies outside of it
    assert not (host.store / "blobs" / "x").exists() and not os.path.exists("/etc/x")
    assert not (host.root / "x").exists()


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
