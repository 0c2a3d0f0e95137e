"""Files on a drive that carries a bundle: read in ranges, written, read back from the drive itself; space first.

Shared by the verbs of bundle.py. A drive is often FAT32, and not always as large, or as sound, as it says.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections import namedtuple

from tasks.remote.common.files import CHUNK, hash_file
from tasks.shared.errors import Refused

MARGIN = 1 << 20  # bytes for what a filesystem writes of its own
# One file of a bundle: `size` bytes, and the range of a file (`path` from `offset`) that it comes from or goes to.
Piece = namedtuple("Piece", "name size sha256 path offset")


def chunks(path, offset, size):
    """Up to `size` bytes of a regular file from `offset`, never through a link."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", path)
        file.seek(offset)
        while size and (chunk := file.read(min(CHUNK, size))):
            size -= len(chunk)
            yield chunk


def size_of(path):
    """Bytes of a regular file; None for anything else, and for nothing."""
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return info.st_size if stat.S_ISREG(info.st_mode) else None


def hashed(path, sizes):
    """(sha256 of the file, sha256 of each of its consecutive ranges of these sizes), read once."""
    whole, found, offset = hashlib.sha256(), [], 0
    for size in sizes:
        sha = hashlib.sha256()
        for chunk in chunks(path, offset, size):
            whole.update(chunk)
            sha.update(chunk)
        found.append(sha.hexdigest())
        offset += size
    return whole.hexdigest(), found


def in_time(until):
    if time.monotonic() > until:
        what = "was not done in time"
        raise Refused("bundle", what, next="the same again: what is whole stays; setting fetch_deadline")


def room(folder, sizes, freed):
    """Space for files of these sizes, in whole clusters, before the first byte."""
    info = os.statvfs(folder)
    wanted = sum(-(-size // info.f_frsize) * info.f_frsize for size in sizes) + MARGIN
    free = info.f_bavail * info.f_frsize + freed
    if sizes and free < wanted:
        where = os.path.realpath(folder)
        while not os.path.ismount(where):
            where = os.path.dirname(where)
        mend = "free some, a larger drive, or less to carry (the far side's have.json)"
        raise Refused(folder, "has too little space", f"{wanted} bytes", f"{free} free (mounted: {where})", mend)


def put(folder, piece, until):
    """One file onto the drive: staged, on the drive before it has its name. It is read back later, with all others."""
    path, sha = os.path.join(folder, piece.name), hashlib.sha256()
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(f"{path}.new", "wb", buffering=0) as file:
            for chunk in chunks(piece.path, piece.offset, piece.size):
                in_time(until)
                sha.update(chunk)
                file.write(chunk)
            os.fsync(file.fileno())
        if sha.hexdigest() != piece.sha256:
            raise Refused(piece.path, "changed while it was read", piece.sha256, sha.hexdigest(), "the same again")
        os.rename(f"{path}.new", path)
    except OSError as error:
        found, mend = str(error.strerror or error), "look at the drive; setting bundle_part_size"
        raise Refused(path, "cannot be written", found=found, next=mend) from None


def whole(folder, piece):
    """Whether the drive gives this piece back: read from the drive itself, where the kernel lets go of its copy."""
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


def holds(fd, part):
    """Whether the file has this part's bytes in their place already."""
    sha, at, end = hashlib.sha256(), part.offset, part.offset + part.size
    if os.fstat(fd).st_size < end:
        return False
    while at < end and (chunk := os.pread(fd, min(CHUNK, end - at), at)):
        sha.update(chunk)
        at += len(chunk)
    return sha.hexdigest() == part.sha256


def join(parts, staged, until):
    """The parts into one file, those that it has already left alone; -> (bytes read of the bundle, [what is wrong])."""
    read_bytes, wrong = 0, []
    fd = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with open(fd, "r+b", buffering=0) as file:
        for part in parts:
            if holds(fd, part):
                continue
            size, sha = size_of(part.path), hashlib.sha256()
            if size != part.size:
                odd = "is missing" if not os.path.lexists(part.path) else "is no regular file"
                odd = odd if size is None else f"has {size} of {part.size} bytes"
                wrong.append(f"{part.name} {odd}")
                continue
            source = chunks(part.path, 0, part.size)
            file.seek(part.offset)
            while True:
                in_time(until)
                try:
                    chunk = next(source, b"")
                except OSError as error:
                    wrong.append(f"{part.name} cannot be read ({error.strerror})")
                    break
                if not chunk:
                    if sha.hexdigest() != part.sha256:
                        wrong.append(
                            f"{part.name} is damaged (sha256 {sha.hexdigest()[:12]}…, not {part.sha256[:12]}…)"
                        )
                    break
                sha.update(chunk)
                file.write(chunk)
                read_bytes += len(chunk)
        if not wrong:
            os.ftruncate(fd, sum(part.size for part in parts))
    return read_bytes, wrong
