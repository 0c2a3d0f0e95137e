"""The self-contained image: a release's cache as one more layer of its backend image, made from the proven store.

Each machine makes it for itself, from blobs that it has hashed, so a new model sends only the files that differ, never
a layer of all of them. The layer depends on the models and hf_home alone: not on the layers below, the machine or the
day. It is streamed into `docker load` and never lies on the disk; `state/<release>/baked.json` keeps its digests.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from dataclasses import dataclass

from tasks.remote.common.files import read_record, write_file
from tasks.shared import layout
from tasks.shared.errors import Refused

CHUNK = 1 << 20


class Counted:
    """A file that keeps the sha256 and the number of bytes of what goes through, to `file` or from it."""

    def __init__(self, file=None):
        self.file, self.sha, self.size = file, hashlib.sha256(), 0

    def write(self, data):
        self.sha.update(data)
        self.size += len(data)
        if self.file is not None:
            self.file.write(data)
        return len(data)

    def read(self, count):
        data = self.file.read(count)
        self.sha.update(data)
        self.size += len(data)
        return data


@dataclass(frozen=True)
class Baked:
    """Digests are 64 hex; config and manifest are the documents' bytes."""

    layer: str
    layer_size: int
    config: bytes
    manifest: bytes

    def record(self):
        """What `docker image inspect` may call it (config: classic store, manifest: containerd's), and the layer."""
        ids = {"config": hashlib.sha256(self.config), "manifest": hashlib.sha256(self.manifest)}
        found = {name: f"sha256:{sha.hexdigest()}" for name, sha in ids.items()}
        return {**found, "layer": f"sha256:{self.layer}", "layer_bytes": self.layer_size}


def record_path(store, lock):
    return os.path.join(store, "state", lock.id, "baked.json")


def recorded(store, lock):
    """The digests of an earlier baking on this machine, or None."""
    return read_record(record_path(store, lock)) or None


def layer(out, root, lock):
    """Write the layer: hub/ of the release in `root`, below the lock's hf_home; always the same bytes."""
    home, tree = lock.serve["hf_home"].strip("/"), layout.cache_tree(lock)
    paths = sorted({**tree.blobs, **tree.links, **tree.texts})
    folders = {home[:i] for i, c in enumerate(home) if c == "/"} | {home}
    folders |= {f"{home}/{path[:i]}" for path in paths for i, c in enumerate(path) if c == "/"}
    # GNU's format spells long names the same way in every Python; PAX headers have changed.
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT, bufsize=CHUNK) as archive:
        for folder in sorted(folders):
            archive.addfile(entry(folder, tarfile.DIRTYPE, 0o755))
        first = {}
        for path in paths:
            name = f"{home}/{path}"
            if path in tree.links:
                archive.addfile(entry(name, tarfile.SYMTYPE, 0o777, link=tree.links[path]))
            elif first.setdefault(tree.blobs.get(path, path), name) != name:  # repositories share files: once is enough
                archive.addfile(entry(name, tarfile.LNKTYPE, 0o444, link=first[tree.blobs[path]]))
            else:
                with open(os.path.join(root, path), "rb") as file:
                    source = Counted(file)
                    archive.addfile(entry(name, tarfile.REGTYPE, 0o444, os.fstat(file.fileno()).st_size), source)
                wanted = tree.blobs.get(path) or hashlib.sha256(tree.texts[path].encode()).hexdigest()
                if source.sha.hexdigest() != wanted:
                    found = source.sha.hexdigest()
                    raise Refused(
                        os.path.join(root, path), "is not the lock's", wanted, found, "deploy.py, verify=full"
                    )


def entry(name, kind, mode, size=0, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.linkname = kind, mode, size, link
    return info


def bake(store, lock):
    """Read the release once; -> the image that has it baked in."""
    root = os.path.join(store, "releases", lock.id)
    found = Counted()
    layer(found, root, lock)
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
    described = canonical(config)
    docker = manifest["config"]["mediaType"].startswith("application/vnd.docker.")
    kind = "application/vnd.docker.image.rootfs.diff.tar" if docker else "application/vnd.oci.image.layer.v1.tar"
    manifest["layers"].append({"mediaType": kind, "digest": f"sha256:{digest}", "size": found.size})
    manifest["config"] = {
        **manifest["config"],
        "digest": f"sha256:{hashlib.sha256(described).hexdigest()}",
        "size": len(described),
    }
    return Baked(digest, found.size, described, canonical(manifest))


def canonical(document):
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def blob(store, sha256):
    with open(os.path.join(store, "blobs", sha256), "rb") as file:
        return file.read()


def stream(out, store, lock, baked):
    """The archive that `docker load` takes, written to `out`: every layer from the store, the new one made once more."""
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
    layer(out, root, lock)  # each of its files is held against the lock again
    pad(out, baked.layer_size)
    out.write(b"\0" * 1024)


def header(out, name, size):
    out.write(entry(name, tarfile.REGTYPE, 0o444, size=size).tobuf(tarfile.GNU_FORMAT))


def pad(out, size):
    out.write(b"\0" * (-size % 512))


def keep_record(store, lock, baked):
    os.makedirs(os.path.dirname(record_path(store, lock)), exist_ok=True)
    write_file(record_path(store, lock), json.dumps(baked.record()) + "\n")
