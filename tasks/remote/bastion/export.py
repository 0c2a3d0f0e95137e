"""Exports the backend image on the bastion: its blobs into the store, its entry for the lock onto standard output.

    export image --store S --source SKOPEO --name NAME --within SEC

`--source` is what skopeo calls an image: docker-daemon:NAME, docker://NAME@sha256:…. `--name` is what the operator's stack
calls it. An image that was exported before is not moved again. One JSON line on standard output: {"image": {…}}.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.remote.common.blobs import held, keep_blob
from tasks.remote.common.docker import image_id
from tasks.remote.common.files import hash_file, hold_lock, print_answer, read_text, write_file
from tasks.shared.errors import Refused

Entry = dict[str, Any]  # an image as the lock has it: {"name", "media_type", "manifest", "config", "layers"}


def export_image(store: str, source: str, name: str, within: float) -> dict[str, Any]:
    """Copy the image's blobs into the store by skopeo, in `within` seconds. Return {"image": its entry for the lock}.

    From an engine, layers stay uncompressed: their digests are then the engine's own (diff ids), so exporting again gives
    the same. From a registry they stay as the registry has them.
    """
    memory = os.path.join(store, "state", "exported.json")
    known: dict[str, Entry] = json.loads(read_text(memory) or "{}")
    identity = identify(source)
    if identity in known and is_whole(store, known[identity]):
        return {"image": {**known[identity], "name": name}}
    work = os.path.join(store, "taken", "image")
    copy_image(source, work, within)
    entry = read_entry(work, name)
    for sha256 in entry_blobs(entry):
        path = os.path.join(work, "blobs/sha256", sha256)
        if hash_file(path) != sha256:
            raise Refused(source, "exported a blob that is not its digest", sha256)
        keep_blob(store, path, sha256)
    shutil.rmtree(work)
    if identity:
        others = {key: image for key, image in known.items() if key != identity and is_whole(store, image)}
        write_file(memory, json.dumps({**others, identity: entry}) + "\n")
    return {"image": entry}


def identify(source: str) -> str | None:
    """What tells an image from every other, without its bytes: the engine's id of it, or its manifest in the registry.

    None where neither answers; the export itself then says what is wrong.
    """
    transport, _, name = source.partition(":")
    try:
        if transport == "docker-daemon":
            return image_id(name)
        done = subprocess.run(["skopeo", "inspect", "--raw", source], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return hashlib.sha256(done.stdout).hexdigest() if done.returncode == 0 else None


def copy_image(source: str, work: str, within: float) -> None:
    """Copy the image into the directory `work`, an OCI layout. Raise Refused where skopeo fails."""
    shutil.rmtree(work, ignore_errors=True)
    command = ["skopeo", "copy", "--quiet", "--dest-oci-accept-uncompressed-layers", source, f"oci:{work}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=within)
    if done.returncode:
        found = done.stderr.strip()[-300:]
        raise Refused(source, "cannot be exported", "skopeo copy to succeed", found, "setting image")


def read_entry(work: str, name: str) -> Entry:
    """The lock's entry of the image in an OCI layout."""
    with open(os.path.join(work, "index.json"), encoding="utf-8") as file:
        top = json.load(file)["manifests"][0]
    with open(os.path.join(work, "blobs/sha256", top["digest"][7:]), encoding="utf-8") as file:
        manifest = json.load(file)
    return {
        "name": name,
        "media_type": top["mediaType"],
        "manifest": {"digest": top["digest"], "size": top["size"]},
        "config": {key: manifest["config"][key] for key in ("digest", "size")},
        "layers": [{key: layer[key] for key in ("digest", "size")} for layer in manifest["layers"]],
    }


def entry_blobs(entry: Mapping[str, Any]) -> dict[str, int]:
    """{sha256: size in bytes} of an image's entry. A layer can stand in an image twice."""
    return {part["digest"][7:]: part["size"] for part in (entry["manifest"], entry["config"], *entry["layers"])}


def is_whole(store: str, entry: Mapping[str, Any]) -> bool:
    """Whether the store has every blob of this image, by size."""
    wanted = entry_blobs(entry)
    return held(store, wanted) == wanted


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="export")
    parser.add_argument("verb", choices=["image"])
    parser.add_argument("--store", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--within", type=int, default=3600)
    args = parser.parse_args(argv)
    os.umask(0o022)
    return print_answer(lambda: run(args), args.store)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The answer of the one verb. One program at a time works on a store."""
    with hold_lock(os.path.join(args.store, ".lock"), "is busy", within=60):
        return export_image(args.store, args.source, args.name, args.within)
