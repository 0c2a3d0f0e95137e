"""Writes a bundle to a drive, and reads each of its files back from it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tasks.remote.bastion import manifest
from tasks.remote.bastion.drive import Piece, check_room, check_time, hash_ranges, is_whole, put, size_of
from tasks.remote.bastion.manifest import Manifest, Part
from tasks.remote.common.blobs import held
from tasks.remote.common.files import sync_folder, utc_now, write_file
from tasks.shared.blobs import missing_blobs, split_blob
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock, parse_lock

# The files that an earlier bundle may have left on the drive, by folder. Nothing else is ever deleted.
OURS = {
    "": re.compile(r"goldens\.json|(lock|goldens)\.json\.sig"),
    "parts": re.compile(r"[0-9a-f]{64}(\.\d{3,})?(\.new)?"),
    "wheels": re.compile(r".*\.whl(\.new)?"),
}


@dataclass(frozen=True)
class Request:
    """What the bundle is to hold.

    contents: {sha256: size} that the far side has, and that stays here. texts: {name: text} and files: {name: path here} of
    what travels beside the blobs. about: {"who", "contents_at"}, for bundle.json.
    """

    lock: dict[str, Any]
    contents: dict[str, int]
    texts: dict[str, str]
    files: dict[str, str]
    about: dict[str, Any]


@dataclass(frozen=True)
class Written:
    """What was done. sums: the sha256 of SHA256SUMS. bytes: of the whole bundle. written: bytes that the drive lacked."""

    sums: str
    written: int
    bytes: int
    parts: int
    changed: bool


def write(store: str, folder: str, part_size: int, request: Request, end: float) -> Written:
    """Write the bundle of a release into `folder`; what the drive has of it stays. `end`: the deadline, as monotonic time."""
    if not os.path.isdir(folder):
        raise Refused(folder, "is not there", "a directory or a mounted drive", "nothing", "mount it, or mkdir")
    lock = parse_lock(json.dumps(request.lock), "the lock from the controller")
    carried = missing_blobs(lock.blobs(), request.contents)
    plan = blob_pieces(store, lock, carried, part_size) + file_pieces(beside_the_blobs(store, request))
    about = describe(lock, plan, part_size, carried, request.about)
    missing, old = [piece for piece in plan if not is_whole(folder, piece)], stale(folder, plan)
    sums = "".join(f"{piece.sha256}  {piece.name}\n" for piece in plan)
    changed = bool(missing or old or not about.is_written(folder))
    if changed:
        replaced = sum(size_of(os.path.join(folder, piece.name)) or 0 for piece in missing)
        check_room(folder, [piece.size for piece in missing], sum(old.values()) + replaced)
        remove([os.path.join(folder, manifest.NAME)])  # first: what is half of the old and half of the new is no bundle
        remove([*old, *(os.path.join(folder, piece.name) for piece in missing)])
        write_pieces(folder, missing, end)
        if missing:
            check_pieces(folder, plan, end)
        write_file(os.path.join(folder, "SHA256SUMS"), sums, None)
        about.write(folder)
    return Written(
        sums=hashlib.sha256(sums.encode()).hexdigest(),
        written=sum(piece.size for piece in missing),
        bytes=sum(piece.size for piece in plan),
        parts=len(about.parts),
        changed=changed,
    )


def beside_the_blobs(store: str, request: Request) -> dict[str, str]:
    """{name in the bundle: path here} of the files beside the blobs. The texts become files of the store's outgoing/."""
    outgoing = os.path.join(store, "outgoing")
    os.makedirs(outgoing, exist_ok=True)
    for name, text in request.texts.items():
        write_file(os.path.join(outgoing, name), text)
    return {**request.files, **{name: os.path.join(outgoing, name) for name in request.texts}}


def blob_pieces(store: str, lock: Lock, carried: Mapping[str, int], part_size: int) -> list[Piece]:
    """The parts of these blobs. Each blob is hashed first, so that no damaged one travels; Refused for the first that is."""
    missing = missing_blobs(carried, held(store, carried))
    if missing:
        what, example = f"lacks {len(missing)} blobs", lock.describe_blob(min(missing))
        raise Refused(f"{store}/blobs", what, "every blob that travels", example, "the same again: it fetches")
    plan = {blob: split_blob(blob, size, part_size) for blob, size in carried.items()}
    paths = {blob: os.path.join(store, "blobs", blob) for blob in plan}
    sums = hash_all({paths[blob]: [size for _, _, size in plan[blob]] for blob in plan})
    found = []
    for blob, path in paths.items():
        sha256, ranges = sums[path]
        if sha256 != blob:
            os.unlink(path)  # as verify does: it is missing from now on, and fetched again
            raise Refused(path, "is damaged", f"sha256 {blob}", sha256, "the same again: it is fetched")
        for (name, offset, size), part_sha256 in zip(plan[blob], ranges):  # noqa: B905 - Python 3.9
            found.append(Piece(f"parts/{name}", size, part_sha256, path, offset))
    return found


def file_pieces(files: Mapping[str, str]) -> list[Piece]:
    """The files beside the blobs, {name: path}, sorted by name."""
    sizes = {path: os.path.getsize(path) for path in files.values()}
    sums = hash_all({path: [size] for path, size in sizes.items()})
    return [Piece(name, sizes[path], sums[path][0], path, 0) for name, path in sorted(files.items())]


def hash_all(files: Mapping[str, Sequence[int]]) -> dict[str, tuple[str, list[str]]]:
    """`hash_ranges` of each {path: sizes of its ranges}, on all cores."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        sums = pool.map(lambda path: hash_ranges(path, files[path]), files)
        return dict(zip(files, sums))  # noqa: B905 - Python 3.9


def stale(folder: str, plan: Sequence[Piece]) -> dict[str, int]:
    """{path: size} of our files on the drive that this bundle does not have, and of those that a kill left unfinished."""
    names, found = {piece.name for piece in plan}, {}
    for top, pattern in OURS.items():
        where = os.path.join(folder, top)
        for entry in os.scandir(where) if os.path.isdir(where) else []:
            is_ours = pattern.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False)
            if is_ours and os.path.join(top, entry.name) not in names:
                found[entry.path] = entry.stat(follow_symlinks=False).st_size
    return found


def remove(paths: Sequence[str]) -> None:
    """Remove the files of these that are there, and put that on disk."""
    there = [path for path in paths if os.path.lexists(path)]
    for path in there:
        os.unlink(path)
    for folder in {os.path.dirname(path) for path in there}:
        sync_folder(folder)


def write_pieces(folder: str, pieces: Sequence[Piece], end: float) -> None:
    """Write these files to the drive."""
    for piece in pieces:
        put(folder, piece, end)
    for top in {os.path.dirname(piece.name) for piece in pieces}:
        sync_folder(os.path.join(folder, top))


def check_pieces(folder: str, plan: Sequence[Piece], end: float) -> None:
    """Read everything back after the last byte: a drive that is smaller than it says overwrites what came first."""
    for piece in plan:
        check_time(end)
        if not is_whole(folder, piece):
            where = os.path.join(folder, piece.name)
            raise Refused(where, "does not read back as it was written", piece.sha256, next="another drive")


def describe(
    lock: Lock, plan: Sequence[Piece], part_size: int, carried: Mapping[str, int], about: Mapping[str, Any]
) -> Manifest:
    """The manifest of a bundle of these files, which carries these blobs."""
    return Manifest(
        release=lock.id,
        part_size=part_size,
        parts=[Part(p.name, os.path.basename(p.path), p.offset, p.size, p.sha256) for p in plan if is_part(p)],
        files={p.name: {"size": p.size, "sha256": p.sha256} for p in plan if not is_part(p)},
        without={blob: size for blob, size in lock.blobs().items() if blob not in carried},
        contents_at=about["contents_at"],
        who=about["who"],
        at=utc_now(),
    )


def is_part(piece: Piece) -> bool:
    """Whether a file of a bundle is a blob, or a range of one."""
    return piece.name.startswith("parts/")
