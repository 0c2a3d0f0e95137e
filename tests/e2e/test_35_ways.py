"""The second way of the guide, baked into the image: deployed, updated, taken back. On both kinds of image store."""

from __future__ import annotations

import json
import re

import pytest

from tests.e2e.conftest import BASTION, ROOT, hub, on
from tests.e2e.fleet import REPO, container, fleet, refs, weights
from tests.lab import lab

# One host for each kind of image store: the classic one, and containerd's.
CLASSIC, CONTAINERD = "lab-gpu3", "lab-gpu2"
BAKED = [CLASSIC, CONTAINERD]
FEW = [word for name in [BASTION, *BAKED] for word in ("--limit", name)]
LOCKS = ROOT / "group_data/locks"
# A store of its own: what the other tests left in theirs would not have to move.
STORE = "/srv/ways"
OWN = ("--data", f"model_store={STORE}", "--data", "push_user=hfways")
BACK = ("tasks/rollback.py", *OWN, *FEW[2:])


def model_files(lock: str) -> dict[str, int]:
    document = json.loads((LOCKS / f"{lock}.json").read_text())
    return {f["sha256"]: f["size"] for model in document["models"] for f in model["files"].values()}


def way(delivery: str, version: str, *more: str):
    """Lock and deploy a version of the light service's model one way; -> the deploy's Run."""
    words = ["--data", f"lock=lab_ways_{delivery}", "--data", f"delivery={delivery}", *OWN, *more]
    hub("refs", {REPO: {"main": refs()[version]}})
    locked = fleet("tasks/lock.py", *words, "--data", "update=true")
    assert locked.code == 0, locked.said[-2000:]
    run = fleet("deploy.py", *words, *FEW, "--data", 'waves=["100%"]')
    assert run.code == 0, run.said[-3000:]
    return run


def mounted(name: str) -> list[str]:
    found = json.loads(on(name, f"docker inspect {container(name)}"))[0]
    return [mount["Destination"] for mount in found["Mounts"]]


def record(name: str, release: str) -> dict:
    return json.loads(on(name, f"cat {STORE}/state/{release}/baked.json"))


@pytest.fixture(scope="module")
def baked():
    """Version 1 baked on two hosts; -> the deploy."""
    lab.up(4)
    hub("reset", {})
    for path in LOCKS.glob("lab_ways*"):
        path.unlink()
    for name in [BASTION, *BAKED]:
        on(name, f"rm -rf {STORE}")
    return way("bake", "v1")


def test_baked_a_service_needs_no_mount_and_no_network(baked):
    for name in BAKED:
        assert baked.host(name)["state"] == "active" and mounted(name) == []
        tag = on(name, f"docker inspect -f '{{{{.Config.Image}}}}' {container(name)}").strip()
        said = on(name, f"docker run --rm --network none {tag} python3 /app/app.py --embed")
        assert len(json.loads(said)["vectors"]["query0"][0]) == 128


def test_the_same_lock_gives_the_same_layer_on_every_machine(baked):
    release = baked.report["release"]
    found = [record(name, release) for name in [BASTION, *BAKED]]
    assert found[0] == found[1] == found[2]
    ids = {on(name, f"docker inspect -f '{{{{.Image}}}}' {container(name)}").strip() for name in BAKED}
    assert ids == {found[0]["config"], found[0]["manifest"]}, "the classic store shows one, containerd's the other"


def test_the_manuals_dockerfile_makes_an_image_that_needs_no_network_either(baked):
    release, manual = baked.report["release"], (ROOT / "docs/deliveries.md").read_text()
    stanza = re.search(r"```dockerfile\n(.*?)```", manual, re.DOTALL).group(1)
    for theirs, ours in (("docai/backend:1.0", "docai/light:1.0"), ("vidore/colpali-v1.2", REPO)):
        assert theirs in stanza
        stanza = stanza.replace(theirs, ours)
    hub_folder = f"{STORE}/releases/{release}/hub"
    built = f"docker build -q -t docai/light:stanza -f - {hub_folder} <<'STANZA' 2>&1\n{stanza}\nSTANZA"
    on(BASTION, built)
    said = on(BASTION, "docker run --rm --network none docai/light:stanza python3 /app/app.py --embed")
    assert json.loads(said) == json.loads(on(CLASSIC, f"docker exec {container(CLASSIC)} python3 /app/app.py --embed"))


def test_baked_a_new_model_moves_only_its_files_and_goes_back(baked):
    old, before = model_files("lab_ways_bake"), {name: weights(name) for name in BAKED}
    run = way("bake", "v2")
    differs = {sha256: size for sha256, size in model_files("lab_ways_bake").items() if sha256 not in old}
    for name in BAKED:
        assert run.host(name)["moved_bytes"] == sum(differs.values()) < 100_000
        assert weights(name) != before[name] and on(name, f"cat {STORE}/current").strip() == run.report["release"]
    back = fleet(*BACK)
    assert back.code == 0, back.said[-2000:]
    assert {name: weights(name) for name in BAKED} == before


def test_a_new_backend_with_the_same_model_moves_only_the_backends_layer(baked):
    build = "printf 'FROM docai/light:1.0\\nRUN echo 2 > /app/version\\n' | docker build -q -t docai/light:1.1 - 2>&1"
    on(BASTION, build)
    run = way("bake", "v1", "--data", "image=docker-daemon:docai/light:1.1")
    again = record(CLASSIC, run.report["release"])
    for name in BAKED:
        assert 0 < run.host(name)["moved_bytes"] < 100_000
        assert on(name, f"docker exec {container(name)} cat /app/version").strip() == "2"
    assert again["layer_bytes"] == record(CLASSIC, baked.report["release"])["layer_bytes"]


def test_from_one_way_to_another_is_a_release_like_any_other(baked):
    before = {name: weights(name) for name in BAKED}
    run = way("mount", "v1")
    for name in BAKED:
        assert run.host(name)["state"] == "active" and mounted(name) == ["/models/hf"]
    assert fleet("tasks/status.py", *OWN, *FEW[2:]).code == 0
    back = fleet(*BACK)
    assert back.code == 0 and [mounted(name) for name in BAKED] == [[], []]
    assert {name: weights(name) for name in BAKED} == before
