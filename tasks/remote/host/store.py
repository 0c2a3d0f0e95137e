"""The store on one machine: admits pushed blobs, builds releases, re-hashes. Bastion and hosts alike.

    ready  --store S --user U   (stdin: lock)   sweep what an older, interrupted push left behind
    admit  --store S --user U   (stdin: lock)   incoming/ -> blobs/ -> releases/<id>, whole or not at all
    verify --store S [--sample PERCENT]   (stdin: lock)   hash every blob of the release again, or some that are PERCENT of its bytes

One JSON line on standard output; exit code 0 is yes, 1 a no with its reason. All writes are stage, verify, rename.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import random
import shutil
import stat
import sys
import time

from tasks.remote.common.files import (
    hash_files,
    hold_lock,
    keep_blob,
    print_answer,
    read_record,
    remove,
    sync_folder,
    utc_now,
    write_file,
)
from tasks.remote.common.trees import differences
from tasks.remote.host import signed, volume
from tasks.remote.host.records import Records
from tasks.shared import layout
from tasks.shared.blobs import missing_blobs
from tasks.shared.errors import Refused
from tasks.shared.lock import parse_lock
from tasks.shared.names import SHA256
from tasks.shared.signatures import SIGNERS

# ------------------------------------------------------------------------------------------------------------- admit


def held(store, wanted):
    """The blobs of `wanted` (sha256 -> size) that blobs/ holds, by size."""
    found = {}
    for sha256 in wanted:
        try:
            info = os.lstat(os.path.join(store, "blobs", sha256))
        except FileNotFoundError:
            continue
        if stat.S_ISREG(info.st_mode):
            found[sha256] = info.st_size
    return found


def ready(store, lock, user):
    """Before a push: remove from incoming/ and taken/ what this release does not lack (an older, interrupted push)."""
    nobody_writes(user)
    lacking = missing_blobs(lock.blobs(), held(store, lock.blobs()))
    swept = []
    incoming, taken = os.path.join(store, "incoming"), os.path.join(store, "taken")
    for folder in (taken, incoming):
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.name not in lacking or not entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)
            else:
                if folder == taken:  # an admit that was cut off: its bytes are not sent again
                    os.rename(entry.path, os.path.join(incoming, entry.name))
                continue
            swept.append(entry.name)
    partial = {e.name: min(e.stat().st_size, lacking[e.name]) for e in os.scandir(incoming)}
    return {"missing": lacking, "partial": partial, "swept": swept}


def nobody_writes(user, within=10):
    """Wait until no process of the pusher is left: an open file could be written after it was hashed."""
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        return
    deadline = time.monotonic() + within
    while True:
        running = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.stat(f"/proc/{pid}").st_uid == uid:
                    running.append(pid)
            except FileNotFoundError:
                continue
        if not running:
            return
        if time.monotonic() > deadline:
            raise Refused(
                user, "still has processes on this host", "none while its files are admitted", ", ".join(running)
            )
        time.sleep(0.2)


def admit(store, lock, user, signers=SIGNERS):
    """incoming/ -> blobs/, each byte hashed here against the lock; then the release. Missing, changed, extra: no.

    Nor does anything move for a lock that is not signed, where this machine asks for signatures.
    """
    signed.check_lock(store, lock.id, signers)
    wanted = lock.blobs()
    lacking = missing_blobs(wanted, held(store, wanted))
    incoming, taken = os.path.join(store, "incoming"), os.path.join(store, "taken")
    arrived = sorted(os.listdir(incoming))
    extra = [name for name in arrived if name not in lacking]
    if extra:
        raise Refused(incoming, "holds what the lock does not name", "nothing else", ascii(extra[:5]), "deploy again")
    for name in arrived:
        os.rename(os.path.join(incoming, name), os.path.join(taken, name))
    nobody_writes(user)  # after the move: what is in taken/ can no longer be opened, so who had it open is all there is
    bad, admitted, mend = [], 0, "the deploy again"
    paths = {sha256: os.path.join(taken, sha256) for sha256 in lacking}
    odd = [path for path in paths.values() if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode)]
    hashed = hash_files([path for path in paths.values() if path not in odd])
    for sha256, path in sorted(paths.items()):
        found = hashed.get(path)
        if found == sha256:
            keep_blob(store, path, sha256)
            admitted += lacking[sha256]
            continue
        size = os.lstat(path).st_size if os.path.lexists(path) else None
        bad.append(f"{lock.describe_blob(sha256)}: {'missing' if size is None else f'{size} bytes, sha256 {found}'}")
        if size == lacking[sha256]:
            mend = f"sha256sum blobs/{sha256} in the bastion's store; damaged there too, remove it, and the deploy again fetches it"
        if size is not None:
            # A whole file with the wrong content would make rsync's quick check skip it for ever.
            os.unlink(path) if size >= lacking[sha256] or path in odd else os.rename(
                path, os.path.join(incoming, sha256)
            )
    if bad:
        expected = f"{len(lacking)} blobs as locked"
        raise Refused(f"{store}/incoming", "does not match the lock", expected, "; ".join(bad[:5]), mend)
    os.makedirs(os.path.join(store, "state", lock.id), exist_ok=True)  # whoever removed it, what follows writes there
    built = build(store, lock, set(lacking))
    return {"admitted": admitted, "blobs": len(lacking), "verified": proven(store, lock.id), **built}


# ------------------------------------------------------------------------------------------------- releases and truth


def faults(store, root, tree):
    """What in a release's directory is not as its lock says (blobs unread): missing, changed and extra paths.

    A hard link to another file than the store's blob is a change: only those are hashed.
    """
    found = differences(root, tree, lambda path, sha256: linked_elsewhere(path, os.path.join(store, "blobs", sha256)))
    elsewhere = {path for path, what in found.items() if what == "changed" and path in tree.blobs}
    return [f"{what} {path}" + (": not the blob of the store" * (path in elsewhere)) for path, what in found.items()]


def linked_elsewhere(path, blob):
    return os.path.exists(blob) and not os.path.samefile(path, blob)


def recreate(store):
    """Have the service's container made anew, by whichever run comes to it."""
    write_file(os.path.join(store, "state", "recreate"), "")


def relink(store, root, tree):
    """Point each hard link of a release that is there at blobs/ again, by rename: after a repair the old inode must go
    everywhere. What is not there is no link's matter: `build` makes such a release anew."""
    changed, serves = [], os.path.basename(root) in Records(store).serving()
    for path, sha256 in tree.blobs.items():
        blob, full = os.path.join(store, "blobs", sha256), os.path.join(root, path)
        if os.path.exists(blob) and os.path.isfile(full) and not os.path.samefile(blob, full):
            if serves:
                recreate(store)  # it has the old inode mapped
            staged = os.path.join(store, "releases", f".relink.{os.getpid()}")
            os.link(blob, staged)
            os.rename(staged, full)
            changed.append(path)
    return changed


def tree_of(store, name):
    """The tree of a release that is here, or None where nobody can read its lock: what is broken there is its own."""
    try:
        return layout.tree(Records(store).lock(name))
    except Refused:
        return None


def build(store, lock, hashed=frozenset()):
    """releases/<id> from blobs/ by hard links: built beside, renamed whole; all releases are relinked.

    `hashed`: the blobs that were, just now. What is linked to others is not proven any more.
    """
    root = os.path.join(store, "releases", lock.id)
    tree = layout.tree(lock)
    relinked = {}
    for name in os.listdir(os.path.join(store, "releases")):
        path = os.path.join(store, "releases", name)
        if SHA256.fullmatch(name):
            other = tree if name == lock.id else tree_of(store, name)
            if changed := relink(store, path, other) if other else []:
                relinked[name] = changed
                if any(other.blobs[link] not in hashed for link in changed):
                    remove(os.path.join(store, "state", name, "verified-at"))
    if os.path.isdir(root) and not faults(store, root, tree):
        return {"built": False, "replaced": False, "relinked": relinked}
    staged = os.path.join(store, "releases", f".{lock.id}.new")
    if os.path.lexists(staged):
        shutil.rmtree(staged)
    for path, text in tree.texts.items():
        os.makedirs(os.path.dirname(os.path.join(staged, path)), exist_ok=True)
        with open(os.path.join(staged, path), "w", encoding="utf-8", newline="") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o444)
            file.flush()
            os.fsync(file.fileno())
    for path, sha256 in tree.blobs.items():
        os.makedirs(os.path.dirname(os.path.join(staged, path)), exist_ok=True)
        os.link(os.path.join(store, "blobs", sha256), os.path.join(staged, path))
    for path, target in tree.links.items():
        os.makedirs(os.path.dirname(os.path.join(staged, path)), exist_ok=True)
        os.symlink(target, os.path.join(staged, path))
    for folder, _, _ in os.walk(staged):
        os.chmod(folder, 0o555)
        sync_folder(folder)
    aside = os.path.isdir(root)
    if aside or lock.id in Records(store).serving():
        # Whatever becomes of this run: the container must be made anew, as it has the directory mounted that was here.
        recreate(store)
    if aside:
        # Not as its lock says, and never patched. A container may have it mounted, so it stays until nothing uses it.
        os.rename(root, os.path.join(store, "releases", f".{lock.id}.{time.time_ns()}.aside"))
    os.rename(staged, root)
    sync_folder(os.path.dirname(root))
    stamp(store, lock.id, "admit")
    return {"built": True, "replaced": aside, "relinked": relinked}


def sample(there, sizes, percent):
    """Blobs by lot until they are `percent` of the bytes: of the blobs, ten small files would stand for a model."""
    least, chosen = sum(sizes[sha256] for sha256 in there) * percent / 100, []
    for sha256 in random.sample(there, len(there)):
        if sum(sizes[taken] for taken in chosen) >= least:
            break
        chosen.append(sha256)
    return chosen


def stamp(store, release_id, how):
    os.makedirs(os.path.join(store, "state", release_id), exist_ok=True)
    at = {"at": utc_now(), "epoch": int(time.time()), "how": how}
    write_file(os.path.join(store, "state", release_id, "verified-at"), json.dumps(at) + "\n")


def proven(store, release_id):
    """When every byte of the release was hashed here last (UTC, ISO), or None."""
    return read_record(os.path.join(store, "state", release_id, "verified-at")).get("at")


def blobs_serving(store):
    """The blobs of what serves here; all that there are, where nobody can read its lock."""
    records = Records(store)
    try:
        return set().union(*(records.lock(name).blobs() for name in records.serving()))
    except Refused:
        return set(os.listdir(os.path.join(store, "blobs")))


def verify(store, lock, percent=100):
    """Hash the blobs of the release again, or a random sample. A damaged one leaves blobs/: it is then missing, and
    pushed alone."""
    start = time.monotonic()
    wanted = lock.blobs()
    there = sorted(held(store, wanted))
    chosen = there if percent == 100 else sample(there, wanted, percent)
    paths = {os.path.join(store, "blobs", sha256): sha256 for sha256 in chosen}
    hashed = hash_files(list(paths))
    damaged, serving = {}, blobs_serving(store)
    for path, sha256 in paths.items():
        if hashed[path] != sha256:
            damaged[sha256] = {"what": lock.describe_blob(sha256), "expected": sha256, "found": hashed[path]}
            if sha256 in serving:  # what has it mapped must be made anew once it is repaired
                recreate(store)
            # Never back into incoming/: releases still have this inode, and rsync writes in place.
            os.unlink(path)
    root = os.path.join(store, "releases", lock.id)
    wrong = faults(store, root, layout.tree(lock)) if os.path.isdir(root) else []
    size = sum(wanted[sha256] for sha256 in paths.values())
    if lock.delivery == "online":
        wrong += [f"{lock.volume}: {path} {what}" for path, what in volume.faults(lock).items()]
        size += sum(lock.model_files().values())
    if wrong or damaged:  # not proven any more: the next deploy puts it right, and makes anew what has it mapped
        remove(os.path.join(store, "state", lock.id, "verified-at"))
        if wrong and lock.id in Records(store).serving():
            recreate(store)
    missing = missing_blobs(wanted, held(store, wanted))
    if not damaged and not wrong and os.path.isdir(root) and not missing and percent == 100:
        stamp(store, lock.id, "verify")
    return {
        "damaged": damaged,
        "wrong": wrong,
        "missing": [lock.describe_blob(sha256) for sha256 in missing if sha256 not in damaged],
        "hashed": len(paths),
        "verified": proven(store, lock.id),
        "bytes": size,
        "seconds": time.monotonic() - start,
    }


def main(argv):
    parser = argparse.ArgumentParser(prog="store")
    parser.add_argument("verb", choices=["ready", "admit", "verify"])
    parser.add_argument("--store", required=True)
    parser.add_argument("--user", default="")
    parser.add_argument("--sample", type=int, default=100)
    parser.add_argument("--signers", default=SIGNERS)
    args = parser.parse_args(argv)
    os.umask(0o022)
    return print_answer(lambda: run(args), args.store)


def run(args):
    with hold_lock(os.path.join(args.store, ".lock"), "is busy", within=60):
        lock = parse_lock(sys.stdin.read(), "the lock from the controller")
        if args.verb == "verify":
            return verify(args.store, lock, args.sample)
        if args.verb == "admit":
            return admit(args.store, lock, args.user, args.signers)
        return ready(args.store, lock, args.user)
