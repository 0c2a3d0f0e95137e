"""A release on a drive, for where no wire crosses: written by the connected bastion, taken into the far one's store.

    bundle write --store S --bundle DIR --part-size BYTES --within SEC
                 (stdin: {"lock": {…}, "have": {sha256: size}, "texts": {name: text}, "files": {name: path}, "about": {…}})
    bundle take  --store S --bundle DIR --within SEC   (stdin: lock)
    bundle have  --store S                             what the store holds, hashed now

A bundle is a directory of plain files; FAT32 takes it: no links, no modes, names of [a-z0-9._-], parts below 4 GiB.

    parts/<sha256>, or parts/<sha256>.000, .001 …   the blobs; one above the part size is split
    lock.json goldens.json tool.tar.gz wheels/ README.txt SHA256SUMS
    bundle.json   {"format", "release", "part_size", "parts": [{"name", "blob", "offset", "size", "sha256"}], "files",
                  "without": {sha256: size} (left out, as the far side has them), "have_at", "who", "at"}; written last

Whatever else lies there is neither read nor deleted. One JSON line on standard output.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tasks.remote.bastion.drive import Piece, hashed, in_time, join, put, room, size_of, whole
from tasks.remote.common.files import (
    hash_file,
    hash_files,
    hold_lock,
    keep_blob,
    print_answer,
    read_text,
    sync_folder,
    utc_now,
    write_file,
)
from tasks.shared.blobs import missing_blobs, split_blob
from tasks.shared.errors import Refused
from tasks.shared.lock import parse_lock
from tasks.shared.names import SHA256

FORMAT = 1
# What an earlier bundle may have left on the drive: only this is ever deleted.
OURS = {
    "": re.compile(r"goldens\.json|(lock|goldens)\.json\.sig"),
    "parts": re.compile(r"[0-9a-f]{64}(\.\d{3,})?(\.new)?"),
    "wheels": re.compile(r".*\.whl(\.new)?"),
}


# --------------------------------------------------------------------------------------------------------------- write


def pieces(store, lock, carried, extra, part_size):
    """Every file of the bundle; what the bastion's store has is hashed first, so that no rotten blob travels."""
    there = {name: size_of(os.path.join(store, "blobs", name)) for name in carried}
    lacking = missing_blobs(carried, there)
    if lacking:
        found, expected = lock.describe_blob(min(lacking)), "every blob that travels"
        raise Refused(f"{store}/blobs", f"lacks {len(lacking)} blobs", expected, found, "the same again: it fetches")
    plan = [(os.path.join(store, "blobs", blob), blob, split_blob(blob, carried[blob], part_size)) for blob in carried]
    plan += [(path, None, [(name, 0, os.path.getsize(path))]) for name, path in sorted(extra.items())]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        sums = list(pool.map(lambda entry: hashed(entry[0], [size for _, _, size in entry[2]]), plan))
    found = []
    for (path, blob, parts), (found_sum, each) in zip(plan, sums):  # noqa: B905 - Python 3.9
        if blob and found_sum != blob:
            os.unlink(path)  # as verify does: it is missing from now on, and fetched again
            raise Refused(path, "is damaged", f"sha256 {blob}", found_sum, "the same again: it is fetched")
        top = "parts/" if blob else ""
        found += [Piece(top + n, size, sha, path, at) for (n, at, size), sha in zip(parts, each)]  # noqa: B905
    return found


def stale(folder, plan):
    """{path: size}: parts and wheels of ours that this bundle has not, and what a kill left unfinished."""
    names, found = {piece.name for piece in plan}, {}
    for top, pattern in OURS.items():
        where = os.path.join(folder, top)
        for entry in os.scandir(where) if os.path.isdir(where) else []:
            known = pattern.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False)
            if known and os.path.join(top, entry.name) not in names:
                found[entry.path] = entry.stat(follow_symlinks=False).st_size
    return found


def put_all(store, folder, part_size, document, until):
    """The bundle, each of its files read back from the drive; bundle.json last, so that one without was cut off."""
    if not os.path.isdir(folder):
        raise Refused(folder, "is not there", "a directory or a mounted drive", "nothing", "mount it, or mkdir")
    lock = parse_lock(json.dumps(document["lock"]), "the lock from the controller")
    all_blobs = lock.blobs()
    carried = missing_blobs(all_blobs, document["have"])
    outgoing = os.path.join(store, "outgoing")
    os.makedirs(outgoing, exist_ok=True)
    extra = dict(document["files"])
    for name, text in document["texts"].items():
        extra[name] = os.path.join(outgoing, name)
        write_file(extra[name], text)
    plan = pieces(store, lock, carried, extra, part_size)
    about = told(document, lock, plan, part_size, {k: v for k, v in all_blobs.items() if k not in carried})
    manifest = os.path.join(folder, "bundle.json")
    lacking, old = [piece for piece in plan if not whole(folder, piece)], stale(folder, plan)
    sums = "".join(f"{piece.sha256}  {piece.name}\n" for piece in plan)
    answer = {
        "sums": hashlib.sha256(sums.encode()).hexdigest(),
        "written": sum(piece.size for piece in lacking),
        "bytes": sum(piece.size for piece in plan),
        "parts": len(about["parts"]),
    }
    if not lacking and not old and same(manifest, about):
        return {**answer, "changed": False}
    shrunk = [size_of(os.path.join(folder, piece.name)) or 0 for piece in lacking]
    room(folder, [piece.size for piece in lacking], sum(old.values()) + sum(shrunk))
    if os.path.lexists(manifest):
        os.unlink(manifest)
        sync_folder(folder)
    for path in [*old, *(os.path.join(folder, piece.name) for piece in lacking)]:
        if os.path.lexists(path):
            os.unlink(path)
    for piece in lacking:
        put(folder, piece, until)
    for top in {os.path.dirname(piece.name) for piece in lacking}:
        sync_folder(os.path.join(folder, top))
    # All of it once more, after the last byte: a drive that is smaller than it says overwrites what came first.
    for piece in plan:
        in_time(until)
        if lacking and not whole(folder, piece):
            where = os.path.join(folder, piece.name)
            raise Refused(where, "does not read back as it was written", piece.sha256, next="another drive")
    write_file(os.path.join(folder, "SHA256SUMS"), sums, None)
    write_file(manifest, json.dumps(about, indent=1, sort_keys=True) + "\n", None)
    return {**answer, "changed": True}


def told(document, lock, plan, part_size, without):
    """bundle.json."""
    parts, offsets = [], {}
    for piece in plan:
        if piece.name.startswith("parts/"):
            blob = piece.name[6:70]
            offset = offsets.get(blob, 0)
            offsets[blob] = offset + piece.size
            parts.append(
                {"name": piece.name, "blob": blob, "offset": offset, "size": piece.size, "sha256": piece.sha256}
            )
    files = {p.name: {"size": p.size, "sha256": p.sha256} for p in plan if not p.name.startswith("parts/")}
    about = {"format": FORMAT, "release": lock.id, "part_size": part_size, "parts": parts, "files": files}
    return {**about, "without": without, **document["about"], "at": utc_now()}


def same(path, about):
    """Whether bundle.json says this already, whoever wrote it and when."""
    try:
        found = json.loads(read_text(path) or "")
    except ValueError:
        return False
    notes = {"at": None, "who": None}
    return isinstance(found, dict) and {**found, **notes} == {**about, **notes}


# ---------------------------------------------------------------------------------------------------------------- take


def opened(folder, lock):
    """bundle.json of a bundle of this very release, its names and numbers judged: it comes from who knows where."""
    path = os.path.join(folder, "bundle.json")
    text = read_text(path)
    if text is None:
        found = "no drive, or one whose writing was cut off" if os.path.isdir(folder) else "no such directory"
        raise Refused(
            path, "is not there", "a bundle that was written to its end", found, "mount it, or write it again"
        )
    try:
        about = json.loads(text)
        known = about["format"] == FORMAT
        parts = [(p["name"], p["blob"], p["offset"], p["size"], p["sha256"]) for p in about["parts"]]
        fine = all(
            SHA256.fullmatch(blob)
            and SHA256.fullmatch(sha256)
            and re.fullmatch(rf"parts/{blob}(\.\d{{3,}})?", name)
            and type(offset) is type(size) is int
            and min(offset, size) >= 0
            for name, blob, offset, size, sha256 in parts
        )
        of, without, when = about["release"], dict(about["without"]), str(about["have_at"])
    except (ValueError, KeyError, TypeError, AttributeError):
        known = fine = False
    if not known or not fine:
        raise Refused(path, f"is no bundle of format {FORMAT}", next="the tool of the bundle, or write it again")
    if of != lock.id:
        mend = "the right drive, or its lock.json into group_data/locks/"
        raise Refused(path, "is of another release", lock.id, ascii(of)[:70], mend)
    found = {}
    for name, blob, offset, size, sha256 in sorted(parts, key=lambda part: part[2]):
        found.setdefault(blob, []).append(Piece(name, size, sha256, os.path.join(folder, name), offset))
    return found, without, when


def take(store, folder, lock, until):
    """Every blob of the lock that the store lacks, joined from its parts; each is the lock's before it enters blobs/.

    What is wrong is named, all at once; blobs and parts that are whole stay, and are not read again.
    """
    found, without, when = opened(folder, lock)
    blobs, work = os.path.join(store, "blobs"), os.path.join(store, "fetch")
    need = missing_blobs(lock.blobs(), {n: size_of(os.path.join(blobs, n)) for n in lock.blobs()})
    os.makedirs(work, exist_ok=True)
    for entry in os.scandir(work):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        elif entry.name not in need:
            os.unlink(entry.path)
    room(store, need.values(), sum(size_of(os.path.join(work, name)) or 0 for name in need))
    answer, wrong = {"files": 0, "bytes": 0, "read": 0}, []
    for sha256, size in need.items():
        what = lock.describe_blob(sha256)
        parts = found.get(sha256, [])
        if not parts and size:
            left = f"was left out, as have.json of {when} has it" if sha256 in without else "is not in the bundle"
            wrong.append(f"{what}: {left}")
            continue
        if [part.offset for part in parts] != [sum(p.size for p in parts[:i]) for i in range(len(parts))]:
            wrong.append(f"{what}: bundle.json has gaps between its parts")
            continue
        staged = os.path.join(work, sha256)
        count, bad = join(parts, staged, until)
        answer["read"] += count
        wrong += [f"{what}: {each}" for each in bad]
        if bad:
            continue
        if os.path.getsize(staged) != size or hash_file(staged) != sha256:
            wrong.append(
                f"{what}: {size_of(staged)} bytes, sha256 {hash_file(staged)}, from whole parts: it was written so"
            )
            os.unlink(staged)
            continue
        keep_blob(store, staged, sha256)
        answer["files"] += 1
        answer["bytes"] += size
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        mend = "the same again with a whole bundle: tasks/bundle.py on the connected side writes what is damaged anew"
        raise Refused(folder, "does not give the lock's blobs", f"{len(need)} blobs", "; ".join(wrong[:5]) + more, mend)
    return answer


# ---------------------------------------------------------------------------------------------------------------- have


def have(store):
    """{"blobs": {sha256: size}} of what the store holds, each hashed now: what is named here will not come again.

    A damaged blob leaves blobs/, as in verify: it is then missing, and the next bundle brings it.
    """
    folder = os.path.join(store, "blobs")
    paths = {n: os.path.join(folder, n) for n in os.listdir(folder) if SHA256.fullmatch(n)}
    sizes = {name: size for name, path in paths.items() if (size := size_of(path)) is not None}
    found = hash_files([paths[name] for name in sizes])
    damaged = sorted(name for name in sizes if found[paths[name]] != name)
    for name in damaged:
        os.unlink(paths[name])
    blobs = {name: size for name, size in sorted(sizes.items()) if name not in damaged}
    return {"blobs": blobs, "damaged": damaged, "bytes": sum(blobs.values()), "at": utc_now()}


# ---------------------------------------------------------------------------------------------------------------- main


def main(argv):
    parser = argparse.ArgumentParser(prog="bundle")
    parser.add_argument("verb", choices=["write", "take", "have"])
    parser.add_argument("--store", required=True)
    parser.add_argument("--bundle", default="")
    parser.add_argument("--part-size", type=int, default=1 << 30)
    parser.add_argument("--within", type=int, default=14400)
    args = parser.parse_args(argv)
    os.umask(0o022)
    # An error without a file name is of the place that is written to.
    return print_answer(lambda: run(args), args.bundle if args.verb == "write" else args.store)


def run(args):
    until = time.monotonic() + args.within
    if args.verb == "have":
        with hold_lock(os.path.join(args.store, ".lock"), "is busy", within=60):
            return have(args.store)
    if args.verb == "take":
        lock = parse_lock(sys.stdin.read(), "the lock from the controller")
        with hold_lock(os.path.join(args.store, ".fetch.lock"), "is being fetched into"):
            return take(args.store, args.bundle, lock, until)
    document = json.load(sys.stdin)
    with hold_lock(os.path.join(args.store, ".bundle.lock"), "writes a bundle"):
        return put_all(args.store, args.bundle, args.part_size, document, until)
