"""The self-contained image: a release's cache as one more layer of its backend image, made from the store's proven blobs.

Each machine makes it for itself, from blobs that it has hashed. So a new model sends only the files that differ, not a layer
of all of them. The layer depends on the models and hf_home alone: not on the layers below, the machine or the day. It is
streamed into `docker load` and never lies on the disk. `state/<release>/baked.json` keeps its digests.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

from tasks.remote.common.files import read_record, write_file
from tasks.shared import layout
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock

CHUNK = 1 << 20


class CountedSink:
    """Takes bytes as a file does, and keeps nothing but their sha256 and their number."""

    def __init__(self) -> None:
        self.sha, self.size = hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha.update(data)
        self.size += len(data)
        return len(data)


class HashedSource:
    """A file that is read, with the sha256 of what has been read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha = file, hashlib.sha256()

    def read(self, count: int = -1) -> bytes:
        data = self.file.read(count)
        self.sha.update(data)
        return data


@dataclass(frozen=True)
class Baked:
    """Digests are 64 hex; config and manifest are the documents' bytes."""

    layer: str
    layer_size: int
    config: bytes
    manifest: bytes

    def record(self) -> dict[str, Any]:
        """The ids that `docker image inspect` may show (config: classic store, manifest: containerd's), and the layer."""
        ids = {"config": hashlib.sha256(self.config), "manifest": hashlib.sha256(self.manifest)}
        found = {name: f"sha256:{sha.hexdigest()}" for name, sha in ids.items()}
        return {**found, "layer": f"sha256:{self.layer}", "layer_bytes": self.layer_size}


def record_path(store: str, lock: Lock) -> str:
    return os.path.join(store, "state", lock.id, "baked.json")


def recorded(store: str, lock: Lock) -> dict[str, Any] | None:
    """The record of the image that this machine baked for the release, or None."""
    return read_record(record_path(store, lock)) or None


def write_layer(out: Any, root: str, lock: Lock) -> None:
    """Write the layer to `out`: hub/ of the release in `root`, below the lock's hf_home. The bytes are always the same.

    Raise Refused where a file is not the lock's.
    """
    home, tree = lock.serve["hf_home"].strip("/"), layout.cache_tree(lock)
    paths = sorted({**tree.blobs, **tree.links, **tree.texts})
    folders = {home[:i] for i, c in enumerate(home) if c == "/"} | {home}
    folders |= {f"{home}/{path[:i]}" for path in paths for i, c in enumerate(path) if c == "/"}
    # GNU's format spells long names the same way in every Python; PAX headers have changed.
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT, bufsize=CHUNK) as archive:
        for folder in sorted(folders):
            archive.addfile(entry(folder, tarfile.DIRTYPE, 0o755))
        first: dict[str, str] = {}
        for path in paths:
            name = f"{home}/{path}"
            if path in tree.links:
                archive.addfile(entry(name, tarfile.SYMTYPE, 0o777, link=tree.links[path]))
            elif first.setdefault(tree.blobs.get(path, path), name) != name:  # repositories share files: once is enough
                archive.addfile(entry(name, tarfile.LNKTYPE, 0o444, link=first[tree.blobs[path]]))
            else:
                wanted = tree.blobs.get(path) or hashlib.sha256(tree.texts[path].encode()).hexdigest()
                add_file(archive, name, os.path.join(root, path), wanted)


def add_file(archive: tarfile.TarFile, name: str, path: str, wanted: str) -> None:
    """Add a file under `name`. Raise Refused where its sha256 is not `wanted`."""
    with open(path, "rb") as file:
        source = HashedSource(file)
        archive.addfile(entry(name, tarfile.REGTYPE, 0o444, os.fstat(file.fileno()).st_size), source)
    found = source.sha.hexdigest()
    if found != wanted:
        raise Refused(path, "is not the lock's", wanted, found, "deploy.py, verify=full")


def entry(name: str, kind: bytes, mode: int, size: int = 0, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.linkname = kind, mode, size, link
    return info


def bake(store: str, lock: Lock) -> Baked:
    """The image that has the release baked in. It reads the release once, and writes nothing."""
    root = os.path.join(store, "releases", lock.id)
    found = CountedSink()
    write_layer(found, root, lock)
    config = json.loads(blob(store, lock.image.config.sha256))
    manifest = json.loads(blob(store, lock.image.manifest.sha256))
    digest = found.sha.hexdigest()
    config["rootfs"]["diff_ids"].append(f"sha256:{digest}")
    if config.get("history"):  # as many entries as layers, or none at all
        made = {"created_by": f"hf-offline: release {lock.id}", "comment": "model cache"}
        config["history"].append({"created": config.get("created", "1970-01-01T00:00:00Z"), **made})
    inside = config.setdefault("config", {})
    environment = dict(pair.partition("=")[::2] for pair in inside.get("Env") or [])
    environment.update(lock.offline_environment(lock.serve["hf_home"]))
    inside["Env"] = [f"{key}={value}" for key, value in environment.items()]
    inside["Labels"] = {**(inside.get("Labels") or {}), "hf-offline.release": lock.id}
    config_bytes = canonical(config)
    docker = manifest["config"]["mediaType"].startswith("application/vnd.docker.")
    kind = "application/vnd.docker.image.rootfs.diff.tar" if docker else "application/vnd.oci.image.layer.v1.tar"
    manifest["layers"].append({"mediaType": kind, "digest": f"sha256:{digest}", "size": found.size})
    manifest["config"] = {
        **manifest["config"],
        "digest": f"sha256:{hashlib.sha256(config_bytes).hexdigest()}",
        "size": len(config_bytes),
    }
    return Baked(digest, found.size, config_bytes, canonical(manifest))


def canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def blob(store: str, sha256: str) -> bytes:
    with open(os.path.join(store, "blobs", sha256), "rb") as file:
        return file.read()


def stream(out: IO[bytes], store: str, lock: Lock, baked: Baked) -> None:
    """Write the archive that `docker load` takes: every layer from the store, and the new one, which is made once more."""
    root, ids = os.path.join(store, "releases", lock.id), baked.record()
    manifest = {"mediaType": lock.image.media_type, "digest": ids["manifest"], "size": len(baked.manifest)}
    below = [each.sha256 for each in lock.image.layers]
    texts = layout.oci(lock.tag, manifest, ids["config"][7:], [*below, baked.layer])
    small = {f"blobs/sha256/{ids['config'][7:]}": baked.config, f"blobs/sha256/{ids['manifest'][7:]}": baked.manifest}
    small.update({name: text.encode() for name, text in texts.items()})
    for name, data in sorted(small.items()):
        header(out, name, len(data))
        out.write(data)
        pad(out, len(data))
    for sha256 in dict.fromkeys(below):
        path = os.path.join(store, "blobs", sha256)
        header(out, f"blobs/sha256/{sha256}", os.path.getsize(path))
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                out.write(chunk)
        pad(out, os.path.getsize(path))
    header(out, f"blobs/sha256/{baked.layer}", baked.layer_size)
    write_layer(out, root, lock)
    pad(out, baked.layer_size)
    out.write(b"\0" * 1024)


def header(out: IO[bytes], name: str, size: int) -> None:
    out.write(entry(name, tarfile.REGTYPE, 0o444, size=size).tobuf(tarfile.GNU_FORMAT))


def pad(out: IO[bytes], size: int) -> None:
    out.write(b"\0" * (-size % 512))


def keep_record(store: str, lock: Lock, baked: Baked) -> None:
    """Note the ids of the baked image, by which it is known in the engine."""
    os.makedirs(os.path.dirname(record_path(store, lock)), exist_ok=True)
    write_file(record_path(store, lock), json.dumps(baked.record()) + "\n")
