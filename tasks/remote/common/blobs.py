"""The blobs of a store: which of them are there, and how a proven file becomes one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable


def held(store: str, wanted: Iterable[str]) -> dict[str, int]:
    """The blobs of `wanted` (sha256) that blobs/ holds, as {sha256: size in bytes}. Nothing is hashed."""
    found = {}
    for sha256 in wanted:
        try:
            info = os.lstat(os.path.join(store, "blobs", sha256))
        except FileNotFoundError:
            continue
        if stat.S_ISREG(info.st_mode):
            found[sha256] = info.st_size
    return found


def keep_blob(store: str, path: str, sha256: str) -> None:
    """Make a file whose bytes are proven blobs/<sha256>: root's, read-only, on disk before it has that name."""
    os.chown(path, 0, 0)
    os.chmod(path, 0o444)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    os.rename(path, os.path.join(store, "blobs", sha256))
