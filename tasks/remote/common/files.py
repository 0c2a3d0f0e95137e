"""Files on a machine: written so that a power cut leaves the old or the new one, hashed on all cores, locked; and the one-line answer.

The remote programs share this. Nothing here knows what a release is.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tasks.shared.errors import Refused

CHUNK = 1 << 20  # bytes
# The descriptors of the locks that this process holds. A command that changes things for it, such as `docker compose up`,
# inherits them. So the next program waits until that command has ended, even when this process is killed.
HELD_LOCKS: list[int] = []
FIXES = {
    errno.ENOSPC: "tasks/prune.py, or free some space there",
    errno.EROFS: "mount it read-write",
    errno.EISDIR: "move that directory away",
    errno.ENOTDIR: "move what is there in a directory's place away",
    errno.EIO: "look at that disk (dmesg)",
}


def sync_folder(folder: str) -> None:
    """Put the names in a directory on disk: a rename is safe from a power cut only after that."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: str, text: str, mode: int | None = 0o644) -> None:
    """Write a file beside its place, sync it, rename it: nobody sees half a file, and a power cut leaves the old or the new one.

    `mode` is None for a drive whose filesystem knows no modes. Raise OSError with `path` as its file name.
    """
    staged = f"{path}.new"
    try:
        with open(staged, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.rename(staged, path)
        sync_folder(os.path.dirname(path))
    except OSError as error:
        # The error of a full disk names no file, and the operator does not know the staged name. A directory in the
        # staged file's place is the exception: that one must be moved away.
        if not os.path.isdir(staged):
            error.filename = path
        raise


def read_text(path: str) -> str | None:
    """The text of a file, or None where no file is. Raise OSError where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return None


def read_record(path: str) -> dict[str, Any]:
    """The JSON object in a file of ours; {} where no file is, or where it holds something else."""
    try:
        found = json.loads(read_text(path) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def remove(path: str) -> None:
    """Remove a file, if it is there, and put that on disk."""
    if os.path.lexists(path):
        os.unlink(path)
        sync_folder(os.path.dirname(path))


def utc_now() -> str:
    """The time in UTC, ISO 8601, in seconds: the form of journals and reports."""
    return time.strftime("%FT%TZ", time.gmtime())


def hash_file(path: str) -> str:
    """The sha256 of a regular file. Raise OSError for a link: no link is followed."""
    sha = hashlib.sha256()
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with open(fd, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def hash_files(paths: Sequence[str]) -> dict[str, str | None]:
    """{path: sha256} of these files, hashed on all cores; None for a file that cannot be read, and for a link."""
    from concurrent.futures import ThreadPoolExecutor  # this import costs 20 ms, and most calls hash nothing

    def one(path: str) -> str | None:
        try:
            return hash_file(path)
        except OSError:
            return None

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # hashlib releases the interpreter's lock
        return dict(zip(paths, pool.map(one, paths)))  # noqa: B905 - Python 3.9


@contextmanager
def hold_lock(path: str, what: str, within: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`. Wait `within` seconds for it, then raise Refused with its holder.

    `what` is the refusal's sentence about the directory of the lock file. The kernel frees the lock of a dead process.
    """
    with open(path, "a+", encoding="ascii") as file:
        until = time.monotonic() + within
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= until:
                    file.seek(0)
                    holder = file.read(80) or "one that starts this moment"
                    raise Refused(os.path.dirname(path), what, "nobody", holder, "wait for it, then again") from None
                time.sleep(0.2)
        file.truncate(0)
        file.write(f"pid {os.getpid()} since {utc_now()}")
        file.flush()
        HELD_LOCKS.append(file.fileno())
        try:
            yield
        finally:
            HELD_LOCKS.remove(file.fileno())


def is_locked(path: str) -> bool:
    """Whether a living process holds the lock file `path`."""
    try:
        with open(path, encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def as_refused(error: Exception, where: str) -> Refused:
    """Any exception as a Refused about `where`: nobody reads a traceback on a GPU host."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, OSError):
        fix = f"{FIXES.get(error.errno or 0, 'look at it there')}, then the same again"
        found = str(error.strerror or error)
        return Refused(str(error.filename or where), "cannot be read or written", found=found, next=fix)
    import traceback

    last = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__} at {os.path.basename(last.filename)}:{last.lineno}"
    return Refused(where, what, found=str(error))


def print_answer(work: Callable[[], Mapping[str, Any]], where: str) -> int:
    """Run `work` and print its answer, or its refusal, as one line of ASCII JSON. Return the exit code: 0 is yes, 1 is no."""
    try:
        answer: dict[str, Any] = {"ok": True, **work()}
    except Exception as error:
        answer = {"ok": False, "error": as_refused(error, where).error}
    # The answer begins on a line of its own: a shell's start-up file may have printed words without a line's end.
    print("\n" + json.dumps(answer, ensure_ascii=True, sort_keys=True), flush=True)
    return 0 if answer["ok"] else 1
