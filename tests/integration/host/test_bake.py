"""The baked layer: from the store alone, always the same bytes, whatever lies below; and what the service finds in it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

import pytest

from tasks.remote.host import bake
from tasks.shared import layout
from tasks.shared.errors import Refused
from tasks.shared.lock import parse_lock
from tests.unit.conftest import file

pytestmark = pytest.mark.integration


def described(document, contents, layer):
    """The lock's document and contents with a real config and manifest upon one base layer of these bytes."""
    docs = {"config": {"config": {"Env": ["PATH=/bin", "HF_HOME=/elsewhere"]}, "rootfs": {"type": "layers"}}}
    digest = hashlib.sha256(layer).hexdigest()
    docs["config"]["rootfs"]["diff_ids"] = [f"sha256:{digest}"]
    blobs = {digest: layer}

    def put(name, value):
        data = json.dumps(value).encode()
        blobs[hashlib.sha256(data).hexdigest()] = data
        document["image"][name] = {"digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}
        return document["image"][name]

    kind = "application/vnd.oci.image"
    described = {"mediaType": f"{kind}.config.v1+json", **put("config", docs["config"])}
    layers = [{"mediaType": f"{kind}.layer.v1.tar", "digest": f"sha256:{digest}", "size": len(layer)}]
    put("manifest", {"schemaVersion": 2, "config": described, "layers": layers})
    document["image"]["layers"] = [{key: layers[0][key] for key in ("digest", "size")}]
    document["serve"] |= {"delivery": "bake", "hf_home": "/models/hf"}
    # Two repositories with one file in common: the layer has its bytes once.
    document["models"][1]["files"]["nested/vocab.txt"] = file("words")
    wanted = parse_lock(json.dumps(document)).blobs()
    return document, {sha256: data for sha256, data in {**contents, **blobs}.items() if sha256 in wanted}


@pytest.fixture
def baked(host, document, contents):
    document, contents = described(document, contents, b"base layer")
    host.incoming(contents)
    host.run("store", "admit", document=document)
    lock = parse_lock(json.dumps(document))
    return host, lock, document, bake.bake(str(host.store), lock)


def members(host, lock):
    out = io.BytesIO()
    bake.write_layer(out, str(host.store / "releases" / lock.id), lock)
    out.seek(0)
    return tarfile.open(fileobj=out)


def test_the_layer_holds_the_cache_and_nothing_else(baked, tmp_path):
    host, lock, _, _ = baked
    archive = members(host, lock)
    inside = {m.name for m in archive.getmembers() if not m.isdir()}
    tree = layout.cache_tree(lock)
    assert inside == {f"models/hf/{path}" for path in {*tree.blobs, *tree.links, *tree.texts}}
    assert all((m.uid, m.gid, m.mtime, m.uname) == (0, 0, 0, "") for m in archive.getmembers())
    assert sum(m.islnk() for m in archive.getmembers()) == 1
    archive.extractall(tmp_path / "root", filter="fully_trusted")
    top = tmp_path / "root/models/hf/hub/models--docai--colpali-tiny"
    assert (top / "snapshots" / ("a" * 40) / "nested/deep/vocab.txt").read_text() == "words"
    assert (top / "refs/main").read_text() == "a" * 40


def test_it_is_the_same_layer_upon_another_backend_and_another_day(baked, tmp_path, bastion, contents):
    host, lock, document, first = baked
    for path in (host.store / "releases" / lock.id).rglob("*.json"):
        path.touch()
    assert bake.bake(str(host.store), lock) == first
    other, blobs = described(json.loads(json.dumps(document)), contents, b"another base layer")
    for path in (bastion.store / "blobs").iterdir():
        path.unlink()
    bastion.incoming(blobs)
    bastion.run("store", "admit", document=other)
    second = bake.bake(str(bastion.store), parse_lock(json.dumps(other)))
    assert (second.layer, second.layer_size) == (first.layer, first.layer_size)
    assert second.record()["config"] != first.record()["config"]


def test_another_model_is_another_layer(baked, document):
    host, _, document, first = baked
    document["models"][0]["commit"] = "c" * 40
    host.run("store", "admit", document=document)
    assert bake.bake(str(host.store), parse_lock(json.dumps(document))).layer != first.layer


def test_the_image_is_offline_by_itself(baked):
    _, lock, _, found = baked
    environment = dict(pair.partition("=")[::2] for pair in json.loads(found.config)["config"]["Env"])
    assert environment["PATH"] == "/bin" and environment["HF_HOME"] == "/models/hf"
    assert environment["HF_HUB_OFFLINE"] == "1" and environment["MODEL_ID"] == lock.served.repo


def test_the_archive_is_what_its_digests_say(baked):
    host, lock, _, found = baked
    out = io.BytesIO()
    bake.stream(out, str(host.store), lock, found)
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        texts = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}
    for name, data in texts.items():
        if name.startswith("blobs/sha256/"):
            assert hashlib.sha256(data).hexdigest() == name[13:]
    legacy = json.loads(texts["manifest.json"])[0]
    assert legacy["RepoTags"] == [lock.tag] and legacy["Layers"][-1] == f"blobs/sha256/{found.layer}"
    assert set(legacy["Layers"]) | {legacy["Config"]} <= set(texts)


@pytest.mark.parametrize("name", ["*/refs/main", "*/blobs/*"])
def test_what_is_not_the_locks_is_not_baked(baked, name):
    host, lock, _, found = baked
    file = next((host.store / "releases" / lock.id / "hub").glob(name))
    file.chmod(0o644)
    data = file.read_bytes()
    file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    for work in (
        lambda: bake.bake(str(host.store), lock),
        lambda: bake.stream(io.BytesIO(), str(host.store), lock, found),
    ):
        with pytest.raises(Refused, match="is not the lock's"):
            work()
