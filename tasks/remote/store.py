"""The store on one machine: sets it up, admits pushed blobs, builds releases, re-hashes. Bastion and hosts alike.

    setup  --store S [--user U --key KEY --from ADDRESS]   directories, and the push user on a host
    ready  --store S   (stdin: lock)                       sweep what an older, interrupted push left behind
    admit  --store S   (stdin: lock)                       incoming/ -> blobs/ -> releases/<id>, whole or not at all
    verify --store S   (stdin: lock)                       hash every blob of the release again
    image  --store S --image-source SKOPEO --name NAME     export an image into blobs/; prints its entry in the lock

One JSON line on standard output; exit code 0 is yes, 1 a no with its reason. All writes are stage, verify, rename.
"""

from __future__ import annotations

import argparse
import fcntl
import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import release
from release import Refused

CHUNK = 1 << 20


# ------------------------------------------------------------------------------------------------ small, careful I/O


def sync_directory(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write(path, text, mode=0o644):
    """Stage, fsync, rename: nobody ever sees half a file, and a power cut leaves the old or the new one."""
    staged = f"{path}.new"
    with open(staged, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    os.rename(staged, path)
    sync_directory(os.path.dirname(path))


def digest(path):
    """sha256 of a regular file, never through a link."""
    sha = hashlib.sha256()
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with open(fd, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def digests(paths):
    """{path: sha256 or None}, on all cores (hashlib lets go of the interpreter's lock)."""

    def one(path):
        try:
            return digest(path)
        except OSError:
            return None

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return dict(zip(paths, pool.map(one, paths)))  # noqa: B905 - Python 3.9


@contextmanager
def locked(store):
    """One writer in a store at a time; the kernel frees the lock when its holder dies."""
    with open(os.path.join(store, ".lock"), "a+", encoding="ascii") as file:
        deadline = time.monotonic() + 60
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise Refused(store, "is busy", "no other run", file.read(80), "wait for it, then again") from None
                time.sleep(0.5)
        file.truncate(0)
        file.write(f"pid {os.getpid()} since {time.strftime('%FT%TZ', time.gmtime())}")
        file.flush()
        yield


# ------------------------------------------------------------------------------------------------------------- setup


def setup(args):
    """The store's directories, and with --user the push user, who can write incoming/ and nothing else."""
    os.makedirs(args.store, mode=0o755, exist_ok=True)
    changed = []
    modes = {"incoming": 0o755, "taken": 0o700, "blobs": 0o755, "releases": 0o755, "state": 0o755, "tool": 0o755}
    for name, mode in modes.items():
        path = os.path.join(args.store, name)
        if not os.path.isdir(path):
            os.mkdir(path)
            changed.append(name)
        os.chmod(path, mode)
    devices = {os.stat(os.path.join(args.store, name)).st_dev for name in modes}
    if len(devices) > 1:
        raise Refused(args.store, "spans several filesystems", "one, as files are moved by rename", str(len(devices)))
    if args.user:
        changed += push_user(args)
    return {"changed": changed}


def push_user(args):
    """`args.user` with one key that can only run rrsync, write-only, below incoming/. It cannot change that itself."""
    # Both come from the bastion, which is not trusted: a line break here would be a second key, without our limits.
    if not re.fullmatch(r"ssh-ed25519 [A-Za-z0-9+/]+={0,2}", args.key):
        raise Refused(
            "push key", "is no plain public key", "ssh-ed25519 …", ascii(args.key[:80]), "look at the bastion"
        )
    if not re.fullmatch(r"\*|[0-9A-Fa-f.:]+(/\d+)?", args.source):
        raise Refused(
            "push_from", "is no address", "an IP address or network, or *", ascii(args.source[:80]), "push_from"
        )
    home = f"/var/lib/{args.user}"
    changed = []
    try:
        user = pwd.getpwnam(args.user)
    except KeyError:
        # '*' is no password and, unlike '!', no locked account: sshd without PAM refuses keys of locked ones.
        command = ["useradd", "--system", "--no-create-home", "-d", home, "-s", "/bin/sh", "-p", "*", args.user]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Refused(args.user, "cannot be created", "useradd to succeed", done.stderr.strip()) from None
        user = pwd.getpwnam(args.user)
        changed.append("user")
    if user.pw_uid == 0 or any(
        args.user in group.gr_mem for group in grp.getgrall() if group.gr_name in ("sudo", "wheel")
    ):
        raise Refused(args.user, "may do more than push", "an unprivileged user", "root or sudo", "setting push_user")
    incoming = os.path.join(args.store, "incoming")
    os.chown(incoming, user.pw_uid, user.pw_gid)
    os.makedirs(f"{home}/.ssh", mode=0o755, exist_ok=True)
    rrsync = shutil.which("rrsync") or "rrsync"
    source = f'from="{args.source}",' if args.source != "*" else ""
    line = f'restrict,{source}command="{rrsync} -wo -no-del {incoming}" {args.key}\n'
    path = f"{home}/.ssh/authorized_keys"
    old = open(path, encoding="utf-8").read() if os.path.exists(path) else None  # noqa: SIM115
    if old != line:
        write(path, line)
        changed.append("key")
    return changed


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
    lacking = release.missing(release.blobs(lock), held(store, release.blobs(lock)))
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


def admit(store, lock, user):
    """incoming/ -> blobs/, each byte hashed here against the lock; then the release. Missing, changed, extra: no."""
    wanted = release.blobs(lock)
    lacking = release.missing(wanted, held(store, wanted))
    incoming, taken = os.path.join(store, "incoming"), os.path.join(store, "taken")
    arrived = sorted(os.listdir(incoming))
    extra = [name for name in arrived if name not in lacking]
    if extra:
        raise Refused(incoming, "holds what the lock does not name", "nothing else", ascii(extra[:5]), "deploy again")
    for name in arrived:
        os.rename(os.path.join(incoming, name), os.path.join(taken, name))
    nobody_writes(user)  # after the move: what is in taken/ can no longer be opened, so who had it open is all there is
    bad, admitted = [], 0
    paths = {sha256: os.path.join(taken, sha256) for sha256 in lacking}
    odd = [path for path in paths.values() if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode)]
    hashed = digests([path for path in paths.values() if path not in odd])
    for sha256, path in sorted(paths.items()):
        found = hashed.get(path)
        if found == sha256:
            keep(store, path, sha256)
            admitted += lacking[sha256]
            continue
        size = os.lstat(path).st_size if os.path.lexists(path) else None
        bad.append(f"{release.names(lock, sha256)}: {'missing' if size is None else f'{size} bytes, sha256 {found}'}")
        if size is not None:
            # A whole file with the wrong content would make rsync's quick check skip it for ever.
            os.unlink(path) if size >= lacking[sha256] or path in odd else os.rename(
                path, os.path.join(incoming, sha256)
            )
    if bad:
        raise Refused(
            f"{store}/incoming", "does not match the lock", f"{len(lacking)} blobs as locked", "; ".join(bad[:5])
        )
    built = build(store, lock)
    return {"admitted": admitted, "blobs": len(lacking), **built}


def keep(store, path, sha256):
    """A proven file becomes blobs/<sha256>: root's, read-only, on disk before it has its name."""
    os.chown(path, 0, 0)
    os.chmod(path, 0o444)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    os.rename(path, os.path.join(store, "blobs", sha256))


# ------------------------------------------------------------------------------------------------- releases and truth


def faults(root, tree):
    """What in a release's directory is not as its lock says (blobs unread): missing, changed and extra paths."""
    found = []
    there = set()
    for folder, folders, files in os.walk(root):
        for name in files + [f for f in folders if os.path.islink(os.path.join(folder, f))]:
            there.add(os.path.relpath(os.path.join(folder, name), root))
    expected = set(tree.blobs) | set(tree.links) | set(tree.texts)
    found += [f"missing {path}" for path in sorted(expected - there)] + [f"extra {p}" for p in sorted(there - expected)]
    for path in sorted(expected & there):
        full = os.path.join(root, path)
        if path in tree.links:
            if not os.path.islink(full) or os.readlink(full) != tree.links[path]:
                found.append(f"changed {path}")
        elif os.path.islink(full) or (path in tree.texts and read_text(full) != tree.texts[path]):
            found.append(f"changed {path}")
    return found


def read_text(path):
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        return file.read()


def relink(store, root, tree):
    """Point each hard link of a release at blobs/ again, by rename: after a repair the old inode must go everywhere."""
    changed = []
    for path, sha256 in tree.blobs.items():
        blob, full = os.path.join(store, "blobs", sha256), os.path.join(root, path)
        if os.path.exists(blob) and (not os.path.lexists(full) or not os.path.samefile(blob, full)):
            staged = os.path.join(store, "releases", f".relink.{os.getpid()}")
            os.link(blob, staged)
            os.rename(staged, full)
            changed.append(path)
    return changed


def build(store, lock):
    """releases/<id> from blobs/ by hard links: built beside, renamed whole; all releases are relinked."""
    root = os.path.join(store, "releases", lock.id)
    tree = release.tree(lock)
    relinked = {}
    for name in os.listdir(os.path.join(store, "releases")):
        path = os.path.join(store, "releases", name)
        if release.SHA256.fullmatch(name):
            other = tree if name == lock.id else release.tree(release.parse(read_text(f"{path}/lock.json"), path))
            if changed := relink(store, path, other):
                relinked[name] = changed
    if os.path.isdir(root) and not faults(root, tree):
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
        sync_directory(folder)
    aside = os.path.isdir(root)
    if aside:
        # Not as its lock says, and never patched. A container may have it mounted, so it stays until nothing uses it.
        os.rename(root, os.path.join(store, "releases", f".{lock.id}.{int(time.time())}.aside"))
    os.rename(staged, root)
    sync_directory(os.path.dirname(root))
    stamp(store, lock.id, "admit")
    return {"built": True, "replaced": aside, "relinked": relinked}


def stamp(store, release_id, how):
    os.makedirs(os.path.join(store, "state", release_id), exist_ok=True)
    at = {"at": time.strftime("%FT%TZ", time.gmtime()), "epoch": int(time.time()), "how": how}
    write(os.path.join(store, "state", release_id, "verified-at"), json.dumps(at) + "\n")


def verify(store, lock):
    """Hash every blob of the release again. A damaged one leaves blobs/: it is then missing, and pushed alone."""
    start = time.monotonic()
    wanted = release.blobs(lock)
    paths = {os.path.join(store, "blobs", sha256): sha256 for sha256 in held(store, wanted)}
    hashed = digests(list(paths))
    damaged = {}
    for path, sha256 in paths.items():
        if hashed[path] != sha256:
            damaged[sha256] = {"what": release.names(lock, sha256), "expected": sha256, "found": hashed[path]}
            # Never back into incoming/: releases still have this inode, and rsync writes in place.
            os.unlink(path)
    root = os.path.join(store, "releases", lock.id)
    wrong = faults(root, release.tree(lock)) if os.path.isdir(root) else []
    if not damaged and not wrong and os.path.isdir(root) and not release.missing(wanted, held(store, wanted)):
        stamp(store, lock.id, "verify")
    size = sum(wanted[sha256] for sha256 in paths.values())
    return {
        "damaged": damaged,
        "wrong": wrong,
        "hashed": len(paths),
        "bytes": size,
        "seconds": time.monotonic() - start,
    }


# ------------------------------------------------------------------------------------------------------------- image


def image(args):
    """Export the backend image by skopeo and keep its blobs; -> the lock's `image`.

    From an engine, layers stay uncompressed: their digests are then the engine's own (diff ids), so exporting again
    gives the same. From a registry they stay as the registry has them.
    """
    work = os.path.join(args.store, "taken", "image")
    shutil.rmtree(work, ignore_errors=True)
    command = ["skopeo", "copy", "--quiet", "--dest-oci-accept-uncompressed-layers", args.image_source, f"oci:{work}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=args.deadline)
    if done.returncode:
        raise Refused(
            args.image_source,
            "cannot be exported",
            "skopeo copy to succeed",
            done.stderr.strip()[-300:],
            "setting image",
        )
    with open(os.path.join(work, "index.json"), encoding="utf-8") as file:
        top = json.load(file)["manifests"][0]
    with open(os.path.join(work, "blobs/sha256", top["digest"][7:]), encoding="utf-8") as file:
        manifest = json.load(file)
    entry = {
        "name": args.name,
        "media_type": top["mediaType"],
        "manifest": {"digest": top["digest"], "size": top["size"]},
        "config": {key: manifest["config"][key] for key in ("digest", "size")},
        "layers": [{key: layer[key] for key in ("digest", "size")} for layer in manifest["layers"]],
    }
    for blob in [entry["manifest"], entry["config"], *entry["layers"]]:
        path = os.path.join(work, "blobs/sha256", blob["digest"][7:])
        if os.path.exists(path):  # a layer can stand in an image twice
            if digest(path) != blob["digest"][7:]:
                raise Refused(args.image_source, "exported a blob that is not its digest", blob["digest"])
            keep(args.store, path, blob["digest"][7:])
    shutil.rmtree(work)
    return {"image": entry}


def main(argv):
    parser = argparse.ArgumentParser(prog="store")
    parser.add_argument("verb", choices=["setup", "ready", "admit", "verify", "image"])
    parser.add_argument("--store", required=True)
    parser.add_argument("--user", default="")
    parser.add_argument("--key", default="")
    parser.add_argument("--from", dest="source", default="*")
    parser.add_argument("--image-source")
    parser.add_argument("--name")
    parser.add_argument("--deadline", type=int, default=3600)
    args = parser.parse_args(argv)
    os.umask(0o022)
    try:
        result = run(args)
    except Refused as no:
        print(json.dumps({"ok": False, "error": no.error}, ensure_ascii=True))
        return 1
    except OSError as error:
        no = Refused(str(error.filename or args.store), "cannot be written or read", found=str(error.strerror or error))
        print(json.dumps({"ok": False, "error": no.error}, ensure_ascii=True))
        return 1
    print(json.dumps({"ok": True, **result}, ensure_ascii=True, sort_keys=True))
    return 0


def run(args):
    if args.verb == "setup":
        return setup(args)
    with locked(args.store):
        if args.verb == "image":
            return image(args)
        lock = release.parse(sys.stdin.read(), "the lock from the controller")
        if args.verb == "ready":
            return ready(args.store, lock, args.user)
        return admit(args.store, lock, args.user) if args.verb == "admit" else verify(args.store, lock)
