"""Files, carefully: written by stage, fsync, rename; hashed on all cores; locked by who says so. And the one-line answer.

Shared by the remote programs; nothing here knows what a release is.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
from contextlib import contextmanager

from tasks.shared.errors import Refused

CHUNK = 1 << 20
# The locks that this process holds. What changes things for it, as `docker compose up`, has them too, and keeps the next
# one out until it has ended, whatever became of us.
HELD_LOCKS: list[int] = []
FIXES = {
    errno.ENOSPC: "tasks/prune.py, or free some space there",
    errno.EROFS: "mount it read-write",
    errno.EISDIR: "move that directory away",
    errno.ENOTDIR: "move what is there in a directory's place away",
    errno.EIO: "look at that disk (dmesg)",
}


def sync_folder(folder):
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path, text, mode=0o644):
    """Stage, fsync, rename: nobody ever sees half a file, and a power cut leaves the old or the new one.

    `mode` None is for a drive whose filesystem knows no modes.
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
        if not os.path.isdir(staged):  # a full disk does not say whose it is, and nobody knows the staged name
            error.filename = path
        raise


def read_text(path):
    """The text of a file, or None where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return None


def read_record(path):
    """The JSON object in a record of ours; {} without one, or where what is there is none."""
    try:
        found = json.loads(read_text(path) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def remove(path):
    if os.path.lexists(path):
        os.unlink(path)
        sync_folder(os.path.dirname(path))


def utc_now():
    """UTC, ISO 8601, as journals and reports have it."""
    return time.strftime("%FT%TZ", time.gmtime())


def hash_file(path):
    """sha256 of a regular file, never through a link."""
    sha = hashlib.sha256()
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with open(fd, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def hash_files(paths):
    """{path: sha256 or None}, on all cores (hashlib lets go of the interpreter's lock)."""
    from concurrent.futures import ThreadPoolExecutor  # 20 ms, a fifth of a call that hashes nothing

    def one(path):
        try:
            return hash_file(path)
        except OSError:
            return None

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return dict(zip(paths, pool.map(one, paths)))  # noqa: B905 - Python 3.9


def keep_blob(store, path, sha256):
    """A proven file becomes blobs/<sha256>: root's, read-only, on disk before it has its name."""
    os.chown(path, 0, 0)
    os.chmod(path, 0o444)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    os.rename(path, os.path.join(store, "blobs", sha256))


@contextmanager
def hold_lock(path, what, within=0.0):
    """Hold the lock file `path`, waiting `within` seconds; else Refused with its holder. The kernel frees a dead one's."""
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


def is_locked(path):
    """Whether a living process holds the lock file `path`."""
    try:
        with open(path, encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def as_refused(error, where):
    """Any exception as a Refused: a surprise is an answer too, and nobody reads a traceback on a GPU host."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, OSError):
        mend = f"{FIXES.get(error.errno or 0, 'look at it there')}, then the same again"
        found = str(error.strerror or error)
        return Refused(str(error.filename or where), "cannot be read or written", found=found, next=mend)
    import traceback

    last = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__} at {os.path.basename(last.filename)}:{last.lineno}"
    return Refused(where, what, found=str(error))


def print_answer(work, where):
    """Run `work`, print its answer (or its refusal) as one line of ASCII JSON; -> exit code: 0 is yes, 1 is no."""
    try:
        answer = {"ok": True, **work()}
    except Exception as error:
        answer = {"ok": False, "error": as_refused(error, where).error}
    # Begun on a line of its own: a shell's start-up file may have said something, without ending its line.
    print("\n" + json.dumps(answer, ensure_ascii=True, sort_keys=True), flush=True)
    return 0 if answer["ok"] else 1
