"""A machine in a folder: a loopback sshd, a push user with the real restrictions, a store; real rsync over real ssh."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.control.tool import Tool
from tasks.shared.lock import parse_lock
from tests.lab import hub as stand_in
from tests.lab.hub_repo import commit
from tests.unit.conftest import DOCUMENT, file

USER = "hfpushtest"
ADAPTER, BASE = "docai/colpali-tiny", "docai/base"
BIG = os.urandom(3 << 20)


class Machine:
    """One store and the tool, run as the controller would run it; every call is a process of its own."""

    def __init__(self, root: Path):
        self.root, self.store = root, root / "store"
        self.tool = root / Tool().name
        arrived = root / "arrived.pyz"
        arrived.write_bytes(Tool().data)
        words = [sys.executable, arrived, "bytecode", "--to", self.tool]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

    def call(self, *words, document=None, ok=True, **more):
        stdin = document if isinstance(document, str | None) else json.dumps(document)
        command = [sys.executable, str(self.tool), *map(str, words)]
        done = subprocess.run(command, input=stdin or "", capture_output=True, text=True, timeout=120, **more)
        assert done.stdout, done.stderr
        answer = json.loads(done.stdout.splitlines()[-1])
        assert answer["ok"] is ok, answer
        assert (done.returncode == 0) is ok
        return answer

    def run(self, program, verb, *words, **more):
        return self.call(program, verb, "--store", self.store, *words, **more)

    def incoming(self, data: dict[str, bytes]):
        for name, content in data.items():
            (self.store / "incoming" / name).write_bytes(content)


@pytest.fixture
def store(tmp_path):
    """A store that has nothing but the state of a release called one."""
    (tmp_path / "state/one").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def contents():
    """{sha256: bytes} of every blob of the made-up lock."""
    texts = ["{}", "adapter", "words", "{ }", "weights", "manifest", "config", "layer"]
    return {file(text)["sha256"]: text.encode() for text in texts}


@pytest.fixture
def document(contents):
    copy = json.loads(json.dumps(DOCUMENT))
    for blob in [copy["image"]["manifest"], copy["image"]["config"], *copy["image"]["layers"]]:
        blob["size"] = len(contents[blob["digest"][7:]])
    return copy


@pytest.fixture
def lock(document):
    return parse_lock(json.dumps(document))


@pytest.fixture
def host(tmp_path):
    (tmp_path / "host").mkdir()
    machine = Machine(tmp_path / "host")
    machine.call("setup", "--store", machine.store)
    return machine


@pytest.fixture
def bastion(tmp_path, contents):
    (tmp_path / "bastion").mkdir()
    machine = Machine(tmp_path / "bastion")
    machine.call("setup", "--store", machine.store)
    for sha256, data in contents.items():
        (machine.store / "blobs" / sha256).write_bytes(data)
    return machine


@pytest.fixture
def sshd(tmp_path, host, bastion):
    """A throw-away sshd on loopback whose only user is the push user, set up by `store setup` itself."""
    if os.geteuid() or not shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin"):
        pytest.skip("needs root and OpenSSH's sshd, as a machine that gets a push user does")
    os.chmod(tmp_path, 0o755)
    for folder in [tmp_path, *tmp_path.parents]:
        if folder != Path("/") and folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(folder.stat().st_mode | 0o055)
    key = bastion.run("push", "key")["key"]
    host.call("setup", "--store", host.store, "--user", USER, "--key", key, "--from", "127.0.0.1")
    folder = tmp_path / "sshd"
    folder.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "host"], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nUsePAM no\nPasswordAuthentication no\n"
    (folder / "config").write_text(config)
    os.makedirs("/run/sshd", exist_ok=True)
    process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert time.monotonic() < deadline, "sshd does not answer"
        time.sleep(0.05)
    public = " ".join((folder / "host.pub").read_text().split()[:2])
    yield {"port": port, "known_hosts": f"[127.0.0.1]:{port} {public}\n"}
    process.terminate()
    process.wait()
    assert pwd.getpwnam(USER)
    # A process in a lab's container may have the same number, and counts as this user's.
    subprocess.run(["userdel", "--force", USER], check=True)
    shutil.rmtree(f"/var/lib/{USER}")


@pytest.fixture
def hub(tmp_path):
    root = tmp_path / "hub"
    base = {"config.json": b'{"model_type": "colpali"}', "model.safetensors": BIG, "README.md": b"x"}
    adapter = {
        "adapter_config.json": json.dumps({"base_model_name_or_path": BASE}).encode(),
        "adapter_model.safetensors": b"adapter",
        "checkpoint-10/optimizer.pt": b"pickle",
        "modeling.py": b"import os",
    }
    commit(root, BASE, base, ["main"])
    commit(root, ADAPTER, adapter, ["main"])
    hub, cdn = stand_in.serve(root, 0, 0, bind="127.0.0.1")
    stand_in.FAULTS.clear()
    stand_in.LOG.clear()
    yield {"root": root, "endpoint": f"http://127.0.0.1:{hub.server_address[1]}", "adapter": adapter, "base": base}
    stand_in.FAULTS.clear()
    for server in (hub, cdn):
        server.shutdown()
        server.server_close()


@pytest.fixture
def cas(tmp_path, hub):
    """A real Xet store that holds the base's weights. `local://` is an undocumented scheme of hf-xet: without it, skip."""
    import hf_xet

    path = (
        hub["root"]
        / BASE
        / "commits"
        / json.loads((hub["root"] / BASE / "refs.json").read_text())["main"]
        / "model.safetensors"
    )
    (tmp_path / "cas").mkdir()
    try:
        with hf_xet.XetSession().new_upload_commit(endpoint=f"local://{tmp_path}/cas") as upload:
            handle = upload.start_upload_file(str(path))
        found = re.search(r'hash="([0-9a-f]{64})"', repr(handle.result())).group(1)
    except Exception as error:
        pytest.skip(f"hf-xet has no local store any more: {error}")
    return {"cas": f"local://{tmp_path}/cas", "hashes": {"model.safetensors": found}}
