"""What a release's directory is: a complete Hugging Face cache of its models alone, and an OCI layout of its image.

Pure: data about a directory, for who builds, checks or reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.shared.lock import Lock, Model, lock_text
from tasks.shared.names import git_sha1


@dataclass(frozen=True)
class Tree:
    """A release's directory as data; all paths relative to it.

    blobs: path -> sha256 (hard links); links: path -> target of a relative symlink; texts: path -> content.
    """

    blobs: Mapping[str, str]
    links: Mapping[str, str]
    texts: Mapping[str, str]


def tree(lock: Lock) -> Tree:
    """The directory of a release: lock.json, a complete Hugging Face cache of these models alone, an OCI layout.

    Layout of the cache: huggingface_hub 2.4 (file_download.py, _tree_cache.py). refs/main has no newline: with one,
    the client's own lookup fails.
    """
    # Online the cache is not the store's: each host loads it into a volume.
    cache = Tree({}, {}, {}) if lock.delivery == "online" else cache_tree(lock)
    image = lock.image
    manifest = {"mediaType": image.media_type, "digest": f"sha256:{image.manifest.sha256}", "size": image.manifest.size}
    texts = oci(image.tag, manifest, image.config.sha256, [layer.sha256 for layer in image.layers])
    return Tree(
        {**cache.blobs, **{f"image/blobs/sha256/{sha256}": sha256 for sha256 in lock.image_blobs()}},
        cache.links,
        {
            "lock.json": lock_text({**lock.document, "asked": {}}),
            **cache.texts,
            **{f"image/{name}": text for name, text in texts.items()},
        },
    )


def cache_tree(lock: Lock) -> Tree:
    """The part of it that a service reads: the Hugging Face cache. It depends on the models alone."""
    hard: dict[str, str] = {}
    links: dict[str, str] = {}
    texts: dict[str, str] = {}
    for model in lock.models:
        top = f"hub/{model.folder}"
        for path, file in model.files.items():
            hard[f"{top}/blobs/{file.etag}"] = file.sha256
            up = "../" * (2 + path.count("/"))
            links[f"{top}/snapshots/{model.commit}/{path}"] = f"{up}blobs/{file.etag}"
        texts[f"{top}/refs/main"] = model.commit
        texts[f"{top}/trees/{model.commit}.json"] = _listing(model)
        texts.update({f"{top}/.no_exist/{model.commit}/{name}": "" for name in model.absent})
    return Tree(hard, links, texts)


def _listing(model: Model) -> str:
    """The client's own listing of a commit, of what the release takes: it then names a missing file offline."""
    files = {}
    for path, file in sorted(model.files.items()):
        files[path] = {"size": file.size, "blob_id": file.etag}
        if file.etag == file.sha256:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {file.size}\n"
            files[path] = {"size": file.size, "blob_id": git_sha1(pointer.encode())}
            files[path].update({"lfs_sha256": file.sha256, "lfs_size": file.size})
    return json.dumps({"format_version": 1, "files": files}, indent=1)


def full_name(name: str) -> str:
    """An image's name as Docker means it: docker.io/library/ in front of what names no registry."""
    first, slash, _ = name.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        return name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"


def oci(tag: str, manifest: Mapping[str, Any], config: str, layers: Sequence[str]) -> dict[str, str]:
    """The texts that make a directory of blobs an OCI layout that `docker load` takes, under the name `tag`.

    manifest: its descriptor (mediaType, digest, size); config, layers: 64 hex each.
    """
    # containerd's store takes names as they stand here, and `docker` then looks for the full one.
    names = {
        "org.opencontainers.image.ref.name": tag.rpartition(":")[2],
        "io.containerd.image.name": full_name(tag),
    }
    # Docker Engine's `load` reads this one; an OCI layout without it is refused up to Engine 26 with the classic store.
    legacy = {
        "Config": f"blobs/sha256/{config}",
        "RepoTags": [tag],
        "Layers": [f"blobs/sha256/{layer}" for layer in layers],
    }
    index = {"schemaVersion": 2, "manifests": [{**manifest, "annotations": names}]}
    return {
        "oci-layout": '{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps(index, sort_keys=True),
        "manifest.json": json.dumps([legacy], sort_keys=True),
    }
