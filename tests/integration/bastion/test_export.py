"""The image's export: every blob is its digest before it enters the store, and what was exported is not moved again."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

pytestmark = pytest.mark.integration
# A stand-in for skopeo, which not every machine has: `inspect` prints the manifest, `copy` puts an OCI layout in place.
SKOPEO = """#!/bin/sh
echo "$1" >> {folder}/calls
case "$1" in
inspect) cat {folder}/manifest ;;
copy) for last; do :; done; mkdir -p "${{last#oci:}}" && cp -r {folder}/oci/. "${{last#oci:}}" ;;
esac
"""


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def registry(tmp_path):
    """A folder with an image as a registry has it, one layer of which it has twice, and a skopeo that copies it."""
    folder = tmp_path / "registry"
    (folder / "oci/blobs/sha256").mkdir(parents=True)

    def put(data: bytes) -> dict:
        (folder / "oci/blobs/sha256" / digest(data)[7:]).write_bytes(data)
        return {"mediaType": "x", "digest": digest(data), "size": len(data)}

    layer = put(b"layer")
    manifest = json.dumps({"config": put(b"config"), "layers": [layer, layer]}).encode()
    (folder / "oci/index.json").write_text(json.dumps({"manifests": [put(manifest)]}))
    (folder / "manifest").write_bytes(manifest)
    (folder / "bin").mkdir()
    (folder / "bin/skopeo").write_text(SKOPEO.format(folder=folder))
    (folder / "bin/skopeo").chmod(0o755)
    return folder


@pytest.fixture
def export(host, registry):
    env = {**os.environ, "PATH": f"{registry}/bin:{os.environ['PATH']}"}
    words = ("--source", "docker://registry/backend@sha256:1", "--within", "60")

    def call(name="docai/backend:1.0", ok=True):
        return host.call("export", "image", "--store", host.store, *words, "--name", name, ok=ok, env=env)

    return call


def blobs(host):
    return {path.name: path.read_bytes() for path in (host.store / "blobs").iterdir()}


def test_the_image_becomes_blobs_and_an_entry_of_the_lock(host, registry, export):
    image = export()["image"]
    manifest = (registry / "manifest").read_bytes()
    layer = {"digest": digest(b"layer"), "size": 5}
    assert image["manifest"] == {"digest": digest(manifest), "size": len(manifest)}
    assert image["config"] == {"digest": digest(b"config"), "size": 6} and image["layers"] == [layer, layer]
    assert sorted(blobs(host).values()) == sorted([b"layer", b"config", manifest])
    assert not (host.store / "taken/image").exists()


def test_an_image_that_was_exported_is_not_moved_again_unless_a_blob_is_gone(host, registry, export):
    first = export()["image"]
    assert export("docai/other:2.0")["image"] == {**first, "name": "docai/other:2.0"}
    assert (registry / "calls").read_text().split() == ["inspect", "copy", "inspect"]
    (host.store / "blobs" / digest(b"layer")[7:]).unlink()
    assert export()["image"] == first and digest(b"layer")[7:] in blobs(host)
    assert (registry / "calls").read_text().split()[3:] == ["inspect", "copy"], "the control"


def test_a_blob_that_is_not_its_digest_is_refused_and_not_kept(host, registry, export):
    (registry / "oci/blobs/sha256" / digest(b"layer")[7:]).write_bytes(b"Layer")
    assert "not its digest" in export(ok=False)["error"]["what"]
    assert digest(b"layer")[7:] not in blobs(host) and not (host.store / "state/exported.json").exists()
