"""The third way of the guide: the host loads the model itself, from an internal mirror of the Hub; deployed, updated, taken back."""

from __future__ import annotations

import json

import pytest

from tests.e2e.conftest import BASTION, GPU1, LOCK, MIXED, ONE, commits, embedding, hub, on, pyinfra
from tests.e2e.fleet import until, variant
from tests.lab import lab

MIRROR = "http://10.77.2.5:8000"
ONLINE = ("--data", "lock=lab_online", "--data", "delivery=online", *MIXED)
ONLINE += ("--data", "ca_bundle=/etc/ssl/certs/ca-certificates.crt")


@pytest.fixture(scope="module")
def mirror():
    """An internal mirror of the Hub that the GPU hosts reach, by plain HTTP; -> how to take it away and bring it back."""
    lab.up()
    hub("reset", {})
    mounted = pyinfra("deploy.py", *MIXED, *ONE)  # what it will go back to
    assert mounted.code == 0, mounted.said[-3000:]
    lab.run("docker", "network", "connect", "--ip", "10.77.2.5", lab.AIRGAP[0], "lab-hub")
    serve = "exec python3 /lab/hub.py --root /lab/data --port 8000 --cdn-port 8001"
    lab.run("docker", "exec", "-d", "lab-hub", "sh", "-c", serve)
    empty = "docker ps -aq --filter name=hf-model | xargs -r docker rm -f; docker volume ls -q | grep hf-offline | xargs -r docker volume rm"
    for name in (BASTION, GPU1):
        on(name, empty)
    until("the mirror answers", lambda: lab.answers("docker", "exec", GPU1, "curl", "-fsS", f"{MIRROR}/_lab/log"))
    yield
    lab.run("docker", "restart", "-t", "1", "lab-hub")
    lab.run("docker", "network", "disconnect", lab.AIRGAP[0], "lab-hub")
    log = ("curl", "-fsS", "https://lab-hub/_lab/log")
    until("the Hub answers again", lambda: lab.answers("docker", "exec", BASTION, *log))


def online(inventory: str, *words: str, ok: bool = True):
    run = pyinfra(*words, *ONLINE, *ONE, inventory=inventory)
    assert (run.code == 0) is ok, run.said[-3000:]
    return run


def volume_file(ending: str) -> str:
    """The path, on the host, of a file of the served model in its volume."""
    return on(
        GPU1, f"readlink -f $(ls /var/lib/docker/volumes/hf-offline-*/_data/hub/*tiny/snapshots/*/{ending})"
    ).strip()


def test_online_the_host_loads_the_locked_commit_and_goes_back_and_forth(mirror):
    for path in LOCK.parent.glob("lab_online*"):
        path.unlink()
    with variant("inventories/lab.py", lab_gpu1={"hub": MIRROR, "egress": []}) as inventory:
        hub("refs", {"docai/colpali-tiny": {"main": commits()["v1"]}})
        online(inventory, "tasks/lock.py")
        hub("refs", {"docai/colpali-tiny": {"main": commits()["v2"]}})  # the branch moves; a lock does not
        run = online(inventory, "deploy.py")
        row = run.host(GPU1)
        assert row["state"] == "active" and row["cosine"] > 0.9999 and row["outbound_attempts"] == 0
        models = json.loads(LOCK.with_name("lab_online.json").read_text())["models"]
        sizes = {f["sha256"]: f["size"] for model in models for f in model["files"].values()}
        assert row["loaded_bytes"] == sum(f["size"] for model in models for f in model["files"].values())
        told = json.loads(on(GPU1, "docker inspect docai-backend-1"))[0]
        assert [m["Name"] for m in told["Mounts"]] == [f"hf-offline-{run.report['release'][:12]}"]
        answer = embedding(GPU1)
        assert pyinfra("tasks/status.py", "--limit", GPU1, inventory=inventory).code == 0
        assert online(inventory, "deploy.py").host(GPU1)["state"] == "unchanged"

        path = volume_file("adapter_model.safetensors")
        on(GPU1, f"chmod u+w {path}; printf x | dd of={path} conv=notrunc bs=1 seek=900 2>&1")
        found = pyinfra("tasks/verify.py", "--limit", GPU1, inventory=inventory)
        assert found.code == 1 and "hf-offline-" in found.host(GPU1)["why"]
        running = on(GPU1, "docker ps -q --no-trunc --filter name=docai-backend")
        mended = online(inventory, "deploy.py")
        assert on(GPU1, "docker ps -q --no-trunc --filter name=docai-backend") != running, "it had mapped the damage"
        assert mended.host(GPU1)["loaded_bytes"] == sizes[on(GPU1, f"sha256sum {path}").split()[0]]
        assert pyinfra("tasks/verify.py", "--limit", GPU1, inventory=inventory).code == 0

        lab.run("docker", "pause", "lab-hub")  # going back needs no network, and coming again neither: the volume stays
        try:
            back = pyinfra("tasks/rollback.py", "--limit", GPU1, inventory=inventory)
            assert back.code == 0, back.said[-3000:]
            assert "hf-model" not in on(GPU1, "docker ps -a --format '{{.Names}}'")
            forward = ("tasks/rollback.py", "--limit", GPU1, "--data", f"release={run.report['release']}")
            again = pyinfra(*forward, inventory=inventory)
            assert again.code == 0, again.said[-3000:]
        finally:
            lab.run("docker", "unpause", "lab-hub")
        assert embedding(GPU1) == answer

        online(inventory, "tasks/lock.py", "--data", "update=true")
        updated = online(inventory, "deploy.py")
        assert updated.host(GPU1)["state"] == "active" and updated.host(GPU1)["moved_bytes"] == 0
        assert embedding(GPU1) != answer
