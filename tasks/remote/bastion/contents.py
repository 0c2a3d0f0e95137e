"""The contents of a store for the next bundle: what is named here will not come again."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tasks.remote.bastion.drive import size_of
from tasks.remote.common.files import hash_files, utc_now
from tasks.shared.names import SHA256


@dataclass(frozen=True)
class Contents:
    """blobs: {sha256: bytes}, sorted. damaged: the blobs that were no longer what they are named after. at: when, in UTC."""

    blobs: dict[str, int]
    damaged: list[str]
    bytes: int
    at: str


def contents(store: str) -> Contents:
    """What the store holds, each blob hashed now. A damaged blob is removed, so that the next bundle brings it again."""
    folder = os.path.join(store, "blobs")
    paths = {name: os.path.join(folder, name) for name in os.listdir(folder) if SHA256.fullmatch(name)}
    sizes = {name: size for name, path in paths.items() if (size := size_of(path)) is not None}
    found = hash_files([paths[name] for name in sizes])
    damaged = sorted(name for name in sizes if found[paths[name]] != name)
    for name in damaged:
        os.unlink(paths[name])
    blobs = {name: size for name, size in sorted(sizes.items()) if name not in damaged}
    return Contents(blobs, damaged, sum(blobs.values()), utc_now())
