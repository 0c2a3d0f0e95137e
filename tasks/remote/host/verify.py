"""Hashes a release's blobs again, all or a random sample, and removes from blobs/ what is damaged."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.remote.common.blobs import held
from tasks.remote.common.files import hash_files
from tasks.remote.host import volume
from tasks.remote.host.records import Records
from tasks.remote.host.releases import faults
from tasks.shared import layout
from tasks.shared.blobs import missing_blobs
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock


def verify(store: str, lock: Lock, percent: int = 100) -> dict[str, Any]:
    """Hash the release's blobs, or a random sample that is `percent` of their bytes. A damaged blob is removed.

    It is then missing, and the next push brings it alone. Return {"damaged": {sha256: {"what", "expected", "found"}},
    "wrong": [what is not as locked], "missing": [blob], "hashed": number of blobs, "verified": when all were hashed last,
    "bytes", "seconds"}.
    """
    began, records = time.monotonic(), Records(store)
    wanted = lock.blobs()
    there = sorted(held(store, wanted))
    chosen = there if percent == 100 else random_sample(there, wanted, percent)
    damaged = remove_damaged(records, lock, chosen)
    root = os.path.join(store, "releases", lock.id)
    wrong = faults(store, root, layout.tree(lock)) if os.path.isdir(root) else []
    size = sum(wanted[sha256] for sha256 in chosen)
    if lock.delivery == "online":
        wrong += [f"{lock.volume}: {path} {what}" for path, what in volume.faults(lock).items()]
        size += sum(lock.model_files().values())
    missing = missing_blobs(wanted, held(store, wanted))
    if wrong or damaged:
        records.forget_verified(lock.id)  # the next deploy repairs it
        if wrong and lock.id in records.serving():
            records.require_recreate()
    elif os.path.isdir(root) and not missing and percent == 100:
        records.mark_verified(lock.id, "verify")
    return {
        "damaged": damaged,
        "wrong": wrong,
        "missing": [lock.describe_blob(sha256) for sha256 in missing if sha256 not in damaged],
        "hashed": len(chosen),
        "verified": records.verified_at(lock.id),
        "bytes": size,
        "seconds": time.monotonic() - began,
    }


def remove_damaged(records: Records, lock: Lock, chosen: Sequence[str]) -> dict[str, dict[str, str | None]]:
    """Hash these blobs, and remove the damaged ones: {sha256: {"what", "expected", "found"}}."""
    paths = {sha256: os.path.join(records.store, "blobs", sha256) for sha256 in chosen}
    hashed = hash_files(list(paths.values()))
    serving = serving_blobs(records)
    damaged: dict[str, dict[str, str | None]] = {}
    for sha256, path in paths.items():
        if hashed[path] == sha256:
            continue
        damaged[sha256] = {"what": lock.describe_blob(sha256), "expected": sha256, "found": hashed[path]}
        if sha256 in serving:
            records.require_recreate()  # the running process has the damaged file mapped
        # It does not go back into incoming/: releases still have this file, and rsync writes in place.
        os.unlink(path)
    return damaged


def serving_blobs(records: Records) -> set[str]:
    """The blobs of the releases that may run here. All blobs, where the lock of one cannot be read."""
    try:
        return set().union(*(records.lock(name).blobs() for name in records.serving()))
    except Refused:
        return set(os.listdir(os.path.join(records.store, "blobs")))


def random_sample(there: Sequence[str], sizes: Mapping[str, int], percent: int) -> list[str]:
    """A random sample of the blobs that is at least `percent` of their bytes. A share of the blobs' number would not do:
    ten small files would stand for a model."""
    least = sum(sizes[sha256] for sha256 in there) * percent / 100
    chosen: list[str] = []
    for sha256 in random.sample(there, len(there)):
        if sum(sizes[each] for each in chosen) >= least:
            break
        chosen.append(sha256)
    return chosen
