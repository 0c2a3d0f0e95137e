"""Admits what was pushed: incoming/ -> taken/ -> blobs/, every byte hashed here against the lock."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import time
from collections.abc import Mapping
from typing import Any

from tasks.remote.common.blobs import held, keep_blob
from tasks.remote.common.files import hash_files
from tasks.remote.host import signed
from tasks.remote.host.records import Records
from tasks.remote.host.releases import build
from tasks.shared.blobs import missing_blobs
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock
from tasks.shared.signatures import SIGNERS

GONE = 10.0  # seconds that a pusher's processes have to end


def ready(store: str, lock: Lock, user: str) -> dict[str, Any]:
    """Prepare for a push: remove from incoming/ and taken/ what an interrupted push left and this release does not need.

    Return {"missing": {sha256: bytes}, "partial": {sha256: bytes that are there}, "swept": [name]}.
    """
    refuse_pusher(user)
    wanted = lock.blobs()
    missing = missing_blobs(wanted, held(store, wanted))
    incoming, taken = os.path.join(store, "incoming"), os.path.join(store, "taken")
    swept = []
    for folder in (taken, incoming):
        for entry in os.scandir(folder):
            is_file = entry.is_file(follow_symlinks=False)
            if is_file and entry.name in missing:
                if folder == taken:  # an admit was killed: its bytes need not be sent again
                    os.rename(entry.path, os.path.join(incoming, entry.name))
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
            swept.append(entry.name)
    partial = {entry.name: min(entry.stat().st_size, missing[entry.name]) for entry in os.scandir(incoming)}
    return {"missing": missing, "partial": partial, "swept": swept}


def refuse_pusher(user: str) -> None:
    """Wait until no process of the push user is left; raise Refused after GONE seconds.

    A process that still has a file open could write into it after it was hashed. Where no such user is, nobody pushes.
    """
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        return
    until = time.monotonic() + GONE
    while True:
        running = processes_of(uid)
        if not running:
            return
        if time.monotonic() > until:
            what, expected = "still has processes on this host", "none while its files are admitted"
            raise Refused(user, what, expected, ", ".join(running))
        time.sleep(0.2)


def processes_of(uid: int) -> list[str]:
    """The ids of the processes that run as this user."""
    running = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{pid}").st_uid == uid:
                running.append(pid)
        except FileNotFoundError:
            continue  # it has ended
    return running


def admit(store: str, lock: Lock, user: str, signers: str = SIGNERS) -> dict[str, Any]:
    """Make what is in incoming/ blobs of the store, and build the release. Raise Refused unless it is what the lock says.

    A missing, a changed and an extra file all refuse. Where this machine asks for signatures, an unsigned lock refuses
    before anything moves.
    """
    signed.check_lock(store, lock.id, signers)
    wanted = lock.blobs()
    missing = missing_blobs(wanted, held(store, wanted))
    take(store, missing)
    # Only after the move: nobody can open a file in taken/. So only a process that runs now can still have one open.
    refuse_pusher(user)
    keep_proven(store, lock, missing)
    records = Records(store)
    os.makedirs(os.path.join(store, "state", lock.id), exist_ok=True)  # the next steps write there
    built = build(store, lock, set(missing))
    counted = {"admitted": sum(missing.values()), "blobs": len(missing), "verified": records.verified_at(lock.id)}
    return {**counted, **built}


def take(store: str, missing: Mapping[str, int]) -> None:
    """Move all of incoming/ into taken/, which only root can enter. Raise Refused if it holds anything else than `missing`."""
    incoming, taken = os.path.join(store, "incoming"), os.path.join(store, "taken")
    arrived = sorted(os.listdir(incoming))
    extra = [name for name in arrived if name not in missing]
    if extra:
        raise Refused(incoming, "holds what this push does not need", "nothing else", ascii(extra[:5]), "deploy again")
    for name in arrived:
        os.rename(os.path.join(incoming, name), os.path.join(taken, name))


def keep_proven(store: str, lock: Lock, missing: Mapping[str, int]) -> None:
    """Hash what is in taken/; make each file that is right a blob. Raise Refused where one of `missing` is not there or wrong."""
    paths = {sha256: os.path.join(store, "taken", sha256) for sha256 in missing}
    files = [path for path in paths.values() if os.path.lexists(path) and stat.S_ISREG(os.lstat(path).st_mode)]
    hashed = hash_files(files)
    wrong, fix = [], "the deploy again"
    for sha256, path in sorted(paths.items()):
        found = hashed.get(path)
        if found == sha256:
            keep_blob(store, path, sha256)
            continue
        size = os.lstat(path).st_size if os.path.lexists(path) else None
        state = "missing" if size is None else f"{size} bytes, sha256 {found}"
        wrong.append(f"{lock.describe_blob(sha256)}: {state}")
        if size == missing[sha256]:
            there = "in the bastion's store; damaged there too, remove it, and the deploy again fetches it"
            fix = f"sha256sum blobs/{sha256} {there}"
        if size is None:
            continue
        if path in hashed and size < missing[sha256]:
            os.rename(path, os.path.join(store, "incoming", sha256))  # the next push sends the rest of it
        else:
            os.unlink(path)  # rsync would skip a whole file with the wrong bytes at each push
    if wrong:
        expected, found = f"{len(missing)} blobs as locked", "; ".join(wrong[:5])
        raise Refused(f"{store}/incoming", "does not match the lock", expected, found, fix)
