"""Deletes what nothing uses: old releases, the blobs and images that no kept release names, and what was left aside.

    prune plan --store S --keep N   (stdin: {"keep": [release id, …], "blobs": [sha256, …]})   what would go; deletes nothing
    prune do   --store S --keep N   (stdin: the same)

Kept: the N releases that were proven last, `current`, `previous`, what a pending switch names, what any container
mounts, what any process has open, and what standard input names. Unreadable is never taken for unused. One JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time

from tasks.remote.common.files import hold_lock, print_answer, read_record, read_text
from tasks.remote.host import bake, volume
from tasks.remote.host.records import Records
from tasks.shared.errors import Refused
from tasks.shared.names import SHA256


def docker(*words):
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=120)
    if done.returncode:
        found = done.stderr.strip()[-200:]
        raise Refused(f"docker {' '.join(words[:2])}", "failed", "an answer", found, "systemctl status docker")
    return done.stdout


def containers():
    """[(mount sources, image name, image id)] of every container, running or not; [] where there is no engine."""
    if not shutil.which("docker"):
        return []
    ids = docker("ps", "-aq", "--no-trunc").split()
    found = json.loads(docker("inspect", *ids)) if ids else []
    return [([m.get("Source", "") for m in c["Mounts"]], c["Config"]["Image"], c["Image"]) for c in found]


def opened(root):
    """Paths below `root` that a process has open, mapped, or works in."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root"]
        try:
            links += [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
            with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
                found.update(line.split(maxsplit=5)[5].strip() for line in file if root in line)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        for link in links:
            try:
                found.add(os.readlink(link))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return {path.removesuffix(" (deleted)") for path in found if path.startswith(root)}


def bound(store):
    """Paths of the store's filesystem that any process has mounted, as they are named now: a container's mount of a
    directory that was renamed keeps the old name everywhere else."""
    here = [line.split() for line in lines("/proc/self/mountinfo")]
    fits = [words for words in here if (store + "/").startswith(words[4].rstrip("/") + "/")]
    device, top, point = max(((words[2], words[3], words[4]) for words in fits), key=lambda found: len(found[2]))
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for words in (line.split() for line in lines(f"/proc/{pid}/mountinfo")):
            if words[2] == device and (words[3] + "/").startswith(top.rstrip("/") + "/"):
                found.add(os.path.normpath(os.path.join(point, os.path.relpath(words[3], top))))
    return found


def lines(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []  # it has ended


def order(store, name):
    """When a release was proven here last, in seconds since the epoch."""
    epoch = read_record(os.path.join(store, "state", name, "verified-at")).get("epoch")
    if not isinstance(epoch, (int, float)):
        return 0  # no record of ours: as if it had not been proven
    if epoch > time.time() + 86400:
        return epoch - 2**40  # of the future, as the clock was wrong: older than all others
    return epoch


def plan(store, keep, asked):
    """{"releases": {id: bytes freed}, "blobs": {sha256: bytes}, "images": {tag: bytes}, "volumes": [name], "leftovers": […], "kept": {id: why}}"""
    records = Records(store)
    folder = os.path.join(store, "releases")
    names = [name for name in os.listdir(folder) if SHA256.fullmatch(name)]
    why = dict.fromkeys(asked.get("keep", []), "the lock in git")
    for name in sorted(names, key=lambda name: -order(store, name))[:keep]:
        why.setdefault(name, f"one of the {keep} newest")
    for record in ("current", "previous"):
        why[(read_text(os.path.join(store, record)) or "").strip()] = record
    pending = records.intent() or {}
    for name in records.serving() - set(names):  # what it has mounted may be aside, and nobody knows its blobs
        mend = "deploy.py, which builds it again"
        raise Refused(os.path.join(folder, name), "is missing, though it serves", "its directory", "none", mend)
    why.update({pending.get(end): "pending" for end in ("from", "to") if pending})
    used = containers()
    uses = [(source, "mounted") for sources, _, _ in used for source in sources]
    uses += [(path, "mounted") for path in bound(store)] + [(path, "open") for path in opened(store)]
    inodes = {(found.st_dev, found.st_ino) for found in map(stat, (path for path, _ in uses)) if found}
    for name in names:
        root = os.path.join(folder, name)
        for path, what in uses:
            if path == root or path.startswith(root + os.sep):
                why.setdefault(name, what)
    kept = [name for name in names if name in why]
    # Refused where one cannot be read, or is another's: nobody knows then which blobs that release has.
    locks = {name: records.lock(name) for name in names}
    named = set(asked.get("blobs", [])).union(*(locks[name].blobs() for name in kept))
    blobs = {}
    for entry in os.scandir(os.path.join(store, "blobs")):
        info = entry.stat(follow_symlinks=False)
        if entry.name not in named and (info.st_dev, info.st_ino) not in inodes:
            blobs[entry.name] = info.st_size
    gone, freed, images, volumes = [name for name in names if name not in why], {}, {}, []
    counted = set()
    for name in sorted(gone, key=lambda name: order(store, name)):
        own = [blob for blob in locks[name].blobs() if blob in blobs and blob not in counted]
        counted.update(own)
        freed[name] = sum(blobs[blob] for blob in own)
        tag, ids = locks[name].tag, locks[name].image_ids(bake.recorded(store, locks[name]))
        in_use = any(tag == image or identity in ids for _, image, identity in used)
        if not in_use and all(locks[other].tag != tag for other in kept):
            images.update(loaded(tag))
        where = volume.mountpoint(locks[name]) if locks[name].delivery == "online" else None
        if where and not any(source == where for source, _ in uses):
            volumes.append(locks[name].volume)
    aside = [e.path for e in os.scandir(folder) if e.name.startswith(".") and e.name.endswith((".aside", ".new"))]
    busy = [path for path, _ in uses]
    leftovers = [path for path in aside if not any(b == path or b.startswith(path + os.sep) for b in busy)]
    states = os.path.join(store, "state")
    leftovers += [e.path for e in os.scandir(states) if e.is_dir() and e.name in gone]
    return {
        "releases": freed,
        "blobs": blobs,
        "images": images,
        "volumes": volumes,
        "leftovers": sorted(leftovers),
        "kept": {n: why[n] for n in kept},
    }


def stat(path):
    try:
        return os.stat(path)
    except OSError:
        return None


def loaded(tag):
    """{tag: bytes} if the engine has this image."""
    if not shutil.which("docker"):
        return {}
    done = subprocess.run(["docker", "image", "inspect", "-f", "{{.Size}}", tag], capture_output=True, text=True)
    return {tag: int(done.stdout)} if done.returncode == 0 else {}


def do(store, found):
    # A release's directory goes last: while it stands, a run after one that was cut off finds what belongs to it.
    for name in found["volumes"]:
        docker("volume", "rm", name)
    for tag in found["images"]:
        docker("image", "rm", tag)
    for path in found["leftovers"]:
        delete(path)
    for name in found["releases"]:
        # Out of its name first: a release is whole or not there.
        aside = os.path.join(store, "releases", f".{name}.pruned.aside")
        os.rename(os.path.join(store, "releases", name), aside)
        delete(aside)
    for name in found["blobs"]:
        os.unlink(os.path.join(store, "blobs", name))
    if found["releases"]:
        Records(store).journal("prune", releases=sorted(found["releases"]), bytes=sum(found["blobs"].values()))
    return found


def delete(path):
    for folder, _, _ in os.walk(path):
        os.chmod(folder, 0o755)  # a release's directories are 0555
    shutil.rmtree(path)


def run(args):
    asked = json.loads(sys.stdin.read() or "{}")
    with hold_lock(os.path.join(args.store, ".lock"), "is busy", within=60):
        found = plan(args.store, args.keep, asked)
        return {**(found if args.verb == "plan" else do(args.store, found)), "done": args.verb == "do"}


def main(argv):
    parser = argparse.ArgumentParser(prog="prune")
    parser.add_argument("verb", choices=["plan", "do"])
    parser.add_argument("--store", required=True)
    parser.add_argument("--keep", type=int, required=True)
    args = parser.parse_args(argv)
    os.umask(0o022)
    return print_answer(lambda: run(args), args.store)
