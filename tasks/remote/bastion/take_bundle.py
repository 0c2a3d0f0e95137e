"""Takes the blobs that a store lacks from a bundle; each is the lock's, by its hash, before it enters blobs/."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.remote.bastion.drive import Piece, check_room, join, size_of
from tasks.remote.bastion.manifest import Manifest, read_manifest
from tasks.remote.common.blobs import held, keep_blob
from tasks.remote.common.files import hash_file
from tasks.shared.blobs import missing_blobs
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock

NAMED = 5  # faults in one message; the rest is counted


@dataclass(frozen=True)
class Taken:
    """What entered the store: files and their bytes; and the bytes that were read from the bundle."""

    files: int
    bytes: int
    read: int


def take(store: str, folder: str, lock: Lock, end: float) -> Taken:
    """Take what the store lacks of the lock from the bundle in `folder`. `end`: the deadline, as monotonic time.

    Blobs and parts that are whole stay, and are not read again. Raise Refused with everything that is wrong, at once.
    """
    manifest = read_manifest(folder, lock)
    missing = missing_blobs(lock.blobs(), held(store, lock.blobs()))
    work = os.path.join(store, "fetch")
    clear(work, missing)
    check_room(store, list(missing.values()), sum(size_of(os.path.join(work, name)) or 0 for name in missing))
    parts = pieces(folder, manifest)
    taken, read, wrong = [], 0, []
    for sha256, size in missing.items():
        count, faults = take_one(store, sha256, size, parts.get(sha256, []), manifest, end)
        read += count
        wrong += [f"{lock.describe_blob(sha256)}: {fault}" for fault in faults]
        if not faults:
            taken.append(sha256)
    if wrong:
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        found, expected = "; ".join(wrong[:NAMED]) + more, f"{len(missing)} blobs"
        fix = "the same again with a whole bundle: tasks/bundle.py on the connected side writes the damaged files again"
        raise Refused(folder, "does not give the lock's blobs", expected, found, fix)
    return Taken(len(taken), sum(missing[sha256] for sha256 in taken), read)


def clear(work: str, missing: Mapping[str, int]) -> None:
    """Remove from the directory of unfinished blobs what is none of the missing ones."""
    os.makedirs(work, exist_ok=True)
    for entry in os.scandir(work):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        elif entry.name not in missing:
            os.unlink(entry.path)


def pieces(folder: str, manifest: Manifest) -> dict[str, list[Piece]]:
    """{blob: its parts on the drive, by offset}."""
    found: dict[str, list[Piece]] = {}
    for part in sorted(manifest.parts, key=lambda part: part.offset):
        path = os.path.join(folder, part.name)
        found.setdefault(part.blob, []).append(Piece(part.name, part.size, part.sha256, path, part.offset))
    return found


def take_one(
    store: str, sha256: str, size: int, parts: Sequence[Piece], manifest: Manifest, end: float
) -> tuple[int, list[str]]:
    """Join one blob from its parts and keep it; return the bytes read, and what is wrong with it."""
    if not parts and size:
        left_out = f"was left out, as contents.json of {manifest.contents_at} has it"
        return 0, [left_out if sha256 in manifest.without else "is not in the bundle"]
    if [part.offset for part in parts] != [sum(p.size for p in parts[:i]) for i in range(len(parts))]:
        return 0, ["bundle.json has gaps between its parts"]
    staged = os.path.join(store, "fetch", sha256)
    read, faults = join(parts, staged, end)
    if faults:
        return read, faults
    found, bytes_found = hash_file(staged), size_of(staged)
    if (found, bytes_found) != (sha256, size):
        os.unlink(staged)
        return read, [f"{bytes_found} bytes, sha256 {found}, from whole parts: it was written so"]
    keep_blob(store, staged, sha256)
    return read, []
