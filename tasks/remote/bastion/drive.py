"""Files on a drive that carries a bundle: read in ranges, written, and read back from the drive itself.

A drive is often FAT32, and not always as large, or as sound, as it says.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks.remote.common.files import CHUNK, hash_file
from tasks.shared.errors import Refused

MARGIN = 1 << 20  # bytes for what a filesystem writes of its own


@dataclass(frozen=True)
class Piece:
    """One file of a bundle: `size` bytes, and the range of a file (`path` from `offset`) that it comes from or goes to."""

    name: str
    size: int
    sha256: str
    path: str
    offset: int


def chunks(path: str, offset: int, size: int) -> Iterator[bytes]:
    """`size` bytes of a regular file from `offset`, or fewer where it ends. Raise OSError for a link, and for no regular file."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", path)
        file.seek(offset)
        while size and (chunk := file.read(min(CHUNK, size))):
            size -= len(chunk)
            yield chunk


def size_of(path: str) -> int | None:
    """The bytes of a regular file; None where there is something else, or nothing."""
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return info.st_size if stat.S_ISREG(info.st_mode) else None


def hash_ranges(path: str, sizes: Sequence[int]) -> tuple[str, list[str]]:
    """The sha256 of a file, and of each of its consecutive ranges of these sizes; the file is read once."""
    whole, found, offset = hashlib.sha256(), [], 0
    for size in sizes:
        sha = hashlib.sha256()
        for chunk in chunks(path, offset, size):
            whole.update(chunk)
            sha.update(chunk)
        found.append(sha.hexdigest())
        offset += size
    return whole.hexdigest(), found


def check_time(end: float) -> None:
    """Raise Refused after `end`, which is monotonic time."""
    if time.monotonic() > end:
        fix = "the same again: what is whole stays; setting fetch_deadline"
        raise Refused("bundle", "was not done in time", next=fix)


def check_room(folder: str, sizes: Sequence[int], freed: int) -> None:
    """Raise Refused where files of these sizes, in whole clusters, have no room, once `freed` bytes are removed."""
    info = os.statvfs(folder)
    wanted = sum(-(-size // info.f_frsize) * info.f_frsize for size in sizes) + MARGIN
    free = info.f_bavail * info.f_frsize + freed
    if sizes and free < wanted:
        where = os.path.realpath(folder)
        while not os.path.ismount(where):
            where = os.path.dirname(where)
        fix = "free some, a larger drive, or less to carry (the far side's contents.json)"
        raise Refused(folder, "has too little space", f"{wanted} bytes", f"{free} free (mounted: {where})", fix)


def put(folder: str, piece: Piece, end: float) -> None:
    """Write one file to the drive. It is on the drive before it has its name. It is read back later, with all others."""
    path, sha = os.path.join(folder, piece.name), hashlib.sha256()
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(f"{path}.new", "wb", buffering=0) as file:
            for chunk in chunks(piece.path, piece.offset, piece.size):
                check_time(end)
                sha.update(chunk)
                file.write(chunk)
            os.fsync(file.fileno())
        if sha.hexdigest() != piece.sha256:
            raise Refused(piece.path, "changed while it was read", piece.sha256, sha.hexdigest(), "the same again")
        os.rename(f"{path}.new", path)
    except OSError as error:
        found, fix = str(error.strerror or error), "look at the drive; setting bundle_part_size"
        raise Refused(path, "cannot be written", found=found, next=fix) from None


def is_whole(folder: str, piece: Piece) -> bool:
    """Whether the drive gives this file back. It is read from the drive itself, as far as the kernel drops its own copy."""
    path = os.path.join(folder, piece.name)
    if size_of(path) != piece.size:
        return False
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    try:
        return hash_file(path) == piece.sha256
    except OSError:
        return False


def join(parts: Sequence[Piece], staged: str, end: float) -> tuple[int, list[str]]:
    """Write the parts of a blob into one file, but for those that it has; return the bytes read, and what is wrong."""
    read, faults = 0, []
    fd = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with open(fd, "r+b", buffering=0):
        for part in parts:
            if not holds(fd, part):
                count, fault = copy_part(fd, part, end)
                read += count
                faults += [fault] if fault else []
        if not faults:
            os.ftruncate(fd, sum(part.size for part in parts))
    return read, faults


def holds(fd: int, part: Piece) -> bool:
    """Whether a file has the bytes of this part already, in their place."""
    sha, at, end = hashlib.sha256(), part.offset, part.offset + part.size
    if os.fstat(fd).st_size < end:
        return False
    while at < end and (chunk := os.pread(fd, min(CHUNK, end - at), at)):
        sha.update(chunk)
        at += len(chunk)
    return sha.hexdigest() == part.sha256


def copy_part(fd: int, part: Piece, end: float) -> tuple[int, str]:
    """Write one part into its place in a file; return the bytes read, and what is wrong with it, or ""."""
    size = size_of(part.path)
    if size != part.size:
        if size is not None:
            return 0, f"{part.name} has {size} of {part.size} bytes"
        return 0, f"{part.name} {'is no regular file' if os.path.lexists(part.path) else 'is missing'}"
    sha, read = hashlib.sha256(), 0
    source = chunks(part.path, 0, part.size)
    while True:
        check_time(end)
        try:
            chunk = next(source, b"")
        except OSError as error:
            return read, f"{part.name} cannot be read ({error.strerror})"
        if not chunk:
            break
        sha.update(chunk)
        os.pwrite(fd, chunk, part.offset + read)
        read += len(chunk)
    if sha.hexdigest() != part.sha256:
        return read, f"{part.name} is damaged (sha256 {sha.hexdigest()[:12]}…, not {part.sha256[:12]}…)"
    return read, ""
