"""A release's directory: what Docker and the Hub's client read there, word for word."""

from __future__ import annotations

import json

from tasks.shared import layout
from tasks.shared.lock import lock_text, parse_lock
from tasks.shared.names import git_sha1

MANIFEST = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:" + "m" * 64, "size": 7}


def test_docker_load_finds_the_image_under_its_tag():
    """Engine 26 with the classic store reads manifest.json; containerd's store reads index.json."""
    texts = layout.oci("docai/backend:1.0-ab", MANIFEST, "c" * 64, ["1" * 64, "2" * 64])
    assert set(texts) == {"oci-layout", "index.json", "manifest.json"}
    assert json.loads(texts["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    annotations = {
        "org.opencontainers.image.ref.name": "1.0-ab",
        "io.containerd.image.name": "docker.io/docai/backend:1.0-ab",
    }
    index = {"schemaVersion": 2, "manifests": [{**MANIFEST, "annotations": annotations}]}
    assert json.loads(texts["index.json"]) == index
    layers = [f"blobs/sha256/{'1' * 64}", f"blobs/sha256/{'2' * 64}"]
    legacy = {"Config": f"blobs/sha256/{'c' * 64}", "RepoTags": ["docai/backend:1.0-ab"], "Layers": layers}
    assert json.loads(texts["manifest.json"]) == [legacy]


def test_the_clients_own_listing_names_each_file_as_the_hub_does(lock):
    """A small file by git's id; a large one by the id of its LFS pointer, with the hash of its bytes beside it."""
    texts = layout.cache_tree(lock).texts
    listing = json.loads(texts["hub/models--docai--colpali-tiny/trees/" + "a" * 40 + ".json"])
    assert listing["format_version"] == 1 and list(listing["files"]) == sorted(lock.served.files)
    small, large = lock.served.files["adapter_config.json"], lock.served.files["adapter_model.safetensors"]
    assert listing["files"]["adapter_config.json"] == {"size": small.size, "blob_id": small.etag}
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{large.sha256}\nsize {large.size}\n"
    assert listing["files"]["adapter_model.safetensors"] == {
        "size": large.size,
        "blob_id": git_sha1(pointer.encode()),
        "lfs_sha256": large.sha256,
        "lfs_size": large.size,
    }


def test_a_release_holds_its_lock_without_what_was_asked_for_and_its_image(lock):
    tree = layout.tree(lock)
    assert tree.texts["lock.json"] == lock_text({**lock.document, "asked": {}}) != lock_text(lock.document)
    assert parse_lock(tree.texts["lock.json"]).id == lock.id
    image = {path: sha256 for path, sha256 in tree.blobs.items() if path.startswith("image/")}
    assert image == {f"image/blobs/sha256/{sha256}": sha256 for sha256 in lock.image_blobs()} and image
    manifest = json.loads(tree.texts["image/index.json"])["manifests"][0]
    assert (manifest["mediaType"], manifest["digest"], manifest["size"]) == (
        lock.image.media_type,
        f"sha256:{lock.image.manifest.sha256}",
        lock.image.manifest.size,
    )
    legacy = json.loads(tree.texts["image/manifest.json"])[0]
    assert legacy["RepoTags"] == [lock.image.tag] and legacy["Config"].endswith(lock.image.config.sha256)
    assert legacy["Layers"] == [f"blobs/sha256/{layer.sha256}" for layer in lock.image.layers]


def test_each_file_of_a_snapshot_leads_to_its_blob(lock):
    tree = layout.cache_tree(lock)
    link = "hub/models--docai--colpali-tiny/snapshots/" + "a" * 40 + "/nested/deep/vocab.txt"
    etag = lock.served.files["nested/deep/vocab.txt"].etag
    assert tree.links[link] == f"../../../../blobs/{etag}"
    assert tree.blobs[f"hub/models--docai--colpali-tiny/blobs/{etag}"]
