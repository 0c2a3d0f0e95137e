"""Deletes what nothing uses: old releases, the blobs and images that no kept release names, and what was left aside.

    prune plan --store S --keep N   (stdin: {"keep": [release id, …], "blobs": [sha256, …]})   what would go; deletes nothing
    prune do   --store S --keep N   (stdin: the same)

Kept: the N releases that were proven last, `current`, `previous`, what a pending switch names, what a container mounts, what
a process has open, and what standard input names. What cannot be read is never taken for unused. One JSON line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.remote.common.docker import docker, docker_output, is_installed
from tasks.remote.common.files import hold_lock, print_answer, read_record, read_text
from tasks.remote.host import bake, uses, volume
from tasks.remote.host.intent import read_intent
from tasks.remote.host.records import Records
from tasks.remote.host.uses import ContainerUse, Use
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock
from tasks.shared.names import SHA256

FUTURE = 86400  # seconds ahead of the clock; a later time was written when the clock was wrong


@dataclass(frozen=True)
class Plan:
    """What goes, and what stays. releases: {id: bytes freed}, the oldest first. blobs: {sha256: bytes}. images: {tag: bytes}.
    volumes: names. leftovers: paths. kept: {release id: why}."""

    releases: dict[str, int]
    blobs: dict[str, int]
    images: dict[str, int]
    volumes: list[str]
    leftovers: list[str]
    kept: dict[str, str]


def plan(store: str, keep: int, asked: Mapping[str, Sequence[str]]) -> Plan:
    """What would be deleted. `asked`: the release ids ("keep") and the blobs ("blobs") that stay in any case.

    Raise Refused where something cannot be read: the lock of a release, a pending switch, the engine.
    """
    records = Records(store)
    names = [name for name in os.listdir(os.path.join(store, "releases")) if SHA256.fullmatch(name)]
    reasons = named_reasons(records, names, keep, asked.get("keep", []))
    refuse_lost_release(records, names)
    containers = uses.containers()
    used = used_paths(store, containers)
    add_used_releases(reasons, store, names, used)
    locks = {name: records.lock(name) for name in names}
    kept = {name: reasons[name] for name in names if name in reasons}
    gone = sorted((name for name in names if name not in reasons), key=lambda name: proven_at(store, name))
    blobs = unused_blobs(store, set(asked.get("blobs", [])).union(*(locks[name].blobs() for name in kept)), used)
    return Plan(
        releases=freed_bytes(gone, locks, blobs),
        blobs=blobs,
        images=unused_images(store, gone, kept, locks, containers),
        volumes=unused_volumes(gone, locks, used),
        leftovers=leftovers(store, gone, used),
        kept=kept,
    )


# ------------------------------------------------------------------------------------------------------- which releases stay


def named_reasons(records: Records, names: Collection[str], keep: int, asked: Collection[str]) -> dict[str, str]:
    """{release id: why it stays} of the releases that the operator, the records or a pending switch name."""
    reasons = dict.fromkeys(asked, "the lock in git")
    for name in sorted(names, key=lambda name: -proven_at(records.store, name))[:keep]:
        reasons.setdefault(name, f"one of the {keep} newest")
    for record in ("current", "previous"):
        reasons[(read_text(os.path.join(records.store, record)) or "").strip()] = record
    pending = read_intent(records)
    if pending:
        reasons.update({name: "pending" for name in (pending.before, pending.target) if name is not None})
    return reasons


def refuse_lost_release(records: Records, names: Collection[str]) -> None:
    """Refuse if a release that serves has no directory: the service may have it mounted from aside, and its blobs are unknown."""
    for name in records.serving() - set(names):
        path, fix = os.path.join(records.store, "releases", name), "deploy.py, which builds it again"
        raise Refused(path, "is missing, though it serves", "its directory", "none", fix)


def proven_at(store: str, name: str) -> float:
    """When a release was proven here last, in seconds since the epoch; 0 where no record says it.

    A time in the future was written by a wrong clock: such a release counts as older than all others.
    """
    epoch = read_record(os.path.join(store, "state", name, "verified-at")).get("epoch")
    if not isinstance(epoch, (int, float)):
        return 0
    return epoch - 2**40 if epoch > time.time() + FUTURE else epoch


def used_paths(store: str, containers: Sequence[ContainerUse]) -> list[Use]:
    """Every use of a path on this machine that may be one of the store."""
    mounts = [source for each in containers for source in each.mounts]
    mounted = [Use(path, "mounted") for path in [*mounts, *uses.mounted_paths(store)]]
    return mounted + [Use(path, "open") for path in uses.open_paths(store)]


def add_used_releases(reasons: dict[str, str], store: str, names: Collection[str], used: Collection[Use]) -> None:
    """Add to `reasons` the releases that something uses."""
    for name in names:
        for use in used:
            if is_inside(use.path, os.path.join(store, "releases", name)):
                reasons.setdefault(name, use.how)


def is_inside(path: str, root: str) -> bool:
    """Whether `path` is `root` or lies below it."""
    return path == root or path.startswith(root + os.sep)


# --------------------------------------------------------------------------------------------------------------- what goes


def unused_blobs(store: str, named: Collection[str], used: Collection[Use]) -> dict[str, int]:
    """{sha256: bytes} of the blobs that no kept release names, and that nothing uses, under this name or another."""
    inodes = {(found.st_dev, found.st_ino) for found in (stat_or_none(use.path) for use in used) if found}
    blobs = {}
    for entry in os.scandir(os.path.join(store, "blobs")):
        info = entry.stat(follow_symlinks=False)
        if entry.name not in named and (info.st_dev, info.st_ino) not in inodes:
            blobs[entry.name] = info.st_size
    return blobs


def stat_or_none(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def freed_bytes(gone: Sequence[str], locks: Mapping[str, Lock], blobs: Mapping[str, int]) -> dict[str, int]:
    """{release id: bytes that it frees}. A blob of several releases counts for the first."""
    counted: set[str] = set()
    freed = {}
    for name in gone:
        own = [blob for blob in locks[name].blobs() if blob in blobs and blob not in counted]
        counted.update(own)
        freed[name] = sum(blobs[blob] for blob in own)
    return freed


def unused_images(
    store: str,
    gone: Collection[str],
    kept: Collection[str],
    locks: Mapping[str, Lock],
    containers: Collection[ContainerUse],
) -> dict[str, int]:
    """{tag: bytes} of the images of the releases that go, unless a container or a kept release has them."""
    kept_tags = {locks[name].tag for name in kept}
    images: dict[str, int] = {}
    for name in gone:
        tag, ids = locks[name].tag, locks[name].image_ids(bake.recorded(store, locks[name]))
        in_use = any(tag == each.image or each.image_id in ids for each in containers)
        if not in_use and tag not in kept_tags:
            size = image_size(tag)
            if size is not None:
                images[tag] = size
    return images


def image_size(tag: str) -> int | None:
    """The bytes of an image that the engine has, or None."""
    if not is_installed():
        return None
    done = docker("image", "inspect", "-f", "{{.Size}}", tag)
    return int(done.stdout) if done.returncode == 0 else None


def unused_volumes(gone: Collection[str], locks: Mapping[str, Lock], used: Collection[Use]) -> list[str]:
    """The names of the volumes of the releases that go, unless something has one mounted."""
    paths = {use.path for use in used}
    online = [locks[name] for name in gone if locks[name].delivery == "online"]
    found = [(lock.volume, volume.mountpoint(lock)) for lock in online]
    return [name for name, where in found if where and where not in paths]


def leftovers(store: str, gone: Collection[str], used: Collection[Use]) -> list[str]:
    """The directories that were put aside or never finished and that nothing uses, and the states of the releases that go."""
    folder = os.path.join(store, "releases")
    aside = [e.path for e in os.scandir(folder) if e.name.startswith(".") and e.name.endswith((".aside", ".new"))]
    unused = [path for path in aside if not any(is_inside(use.path, path) for use in used)]
    states = [e.path for e in os.scandir(os.path.join(store, "state")) if e.is_dir() and e.name in gone]
    return sorted(unused + states)


# --------------------------------------------------------------------------------------------------------------- deleting it


def delete_all(store: str, found: Plan) -> None:
    """Delete what the plan names. A release's directory goes last: after a kill, the next run finds by it what belongs to it."""
    for name in found.volumes:
        docker_output("volume", "rm", name)
    for tag in found.images:
        docker_output("image", "rm", tag)
    for path in found.leftovers:
        delete_tree(path)
    for name in found.releases:
        # It loses its name first: a release is whole, or not there.
        aside = os.path.join(store, "releases", f".{name}.pruned.aside")
        os.rename(os.path.join(store, "releases", name), aside)
        delete_tree(aside)
    for name in found.blobs:
        os.unlink(os.path.join(store, "blobs", name))
    if found.releases:
        Records(store).journal("prune", releases=sorted(found.releases), bytes=sum(found.blobs.values()))


def delete_tree(path: str) -> None:
    """Delete a directory. Those of a release have the mode 0555."""
    for folder, _, _ in os.walk(path):
        os.chmod(folder, 0o755)
    shutil.rmtree(path)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="prune")
    parser.add_argument("verb", choices=["plan", "do"])
    parser.add_argument("--store", required=True)
    parser.add_argument("--keep", type=int, required=True)
    args = parser.parse_args(argv)
    os.umask(0o022)
    return print_answer(lambda: run(args.store, args.keep, is_dry=args.verb == "plan"), args.store)


def run(store: str, keep: int, is_dry: bool) -> dict[str, Any]:
    """The plan, and whether it was carried out. One program at a time works on a store."""
    asked = json.loads(sys.stdin.read() or "{}")
    with hold_lock(os.path.join(store, ".lock"), "is busy", within=60):
        found = plan(store, keep, asked)
        if not is_dry:
            delete_all(store, found)
        return {**dataclasses.asdict(found), "done": not is_dry}
