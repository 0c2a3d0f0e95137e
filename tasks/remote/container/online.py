"""Loads the locked model into a volume, in the backend's container: for hosts that are connected, or reach a mirror.

    online --lock /lock.json --home /models/hf   (environment: HF_ENDPOINT, HF_HUB_DISABLE_XET; HF_OFFLINE_FULL: hash all)

The service itself starts only when this has ended well, and reads the volume offline: so it gets the locked commit, and
neither a branch that moved nor a Hub that is down can change or stop it. What is there stays; when nothing lacks,
nothing is asked of the network. Whether the bytes are the lock's is judged again outside, by the host (remote/volume.py).
One JSON line on standard output.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time

from tasks.remote.bastion import fetch
from tasks.remote.common.files import hash_file, hold_lock, print_answer, read_text, write_file
from tasks.shared import layout
from tasks.shared.errors import Refused
from tasks.shared.lock import parse_lock

TRIES = 5  # the image has huggingface_hub, but no library for retries


def lacking(home, lock):
    """[(model, name, file, path)] of what the cache in `home` lacks, by size, or by hash where asked; each blob once."""
    found, full = {}, bool(os.environ.get("HF_OFFLINE_FULL"))
    for model in lock.models:
        for name, file in model.files.items():
            path = os.path.join(home, "hub", model.folder, "blobs", file.etag)
            there = os.path.isfile(path) and os.path.getsize(path) == file.size
            if not there or (full and hash_file(path) != file.sha256):
                found.setdefault(path, (model, name, file, path))
    return list(found.values())


def load(home, model, name, file, path):
    """One file from the Hub, hashed before it has its name."""
    document = {"endpoint": os.environ["HF_ENDPOINT"], "token": None}
    for attempt in range(TRIES):
        try:
            staged = fetch.downloaded(home, model.repo, model.commit, name, document)
            break
        except Exception as error:
            no = fetch.explained(error, model.repo, model.commit, document)
            if no is None and attempt + 1 == TRIES:
                found = f"{fetch.brief(error)}, {TRIES} times"
                no = Refused(document["endpoint"], "does not answer as a Hub does", model.repo, found, "setting hub")
            if no is not None:
                raise no from None
            print(f"{model.repo}: {fetch.brief(error)}; again", file=sys.stderr)
            time.sleep(2**attempt)
    found = hash_file(staged)
    if found != file.sha256:
        raise Refused(f"{model.repo}: {name}", "does not match the lock", file.sha256, found, "who is in between?")
    os.chmod(staged, 0o444)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.replace(staged, path)


def run(args):
    lock = parse_lock(read_text(args.lock) or "", args.lock)
    with hold_lock(os.path.join(args.home, ".lock"), "is being loaded into", within=600):
        lacks = lacking(args.home, lock)
        for model, name, file, path in lacks:
            load(args.home, model, name, file, path)
        shutil.rmtree(os.path.join(args.home, "fetch"), ignore_errors=True)
        tree = layout.cache_tree(lock)
        for path, target in tree.links.items():
            full = os.path.join(args.home, path)
            os.makedirs(os.path.dirname(full), exist_ok=True)
            if not os.path.islink(full) or os.readlink(full) != target:
                os.symlink(target, f"{full}.new")
                os.replace(f"{full}.new", full)
        for path, text in sorted(tree.texts.items(), key=lambda item: item[0].endswith("refs/main")):  # refs come last
            full = os.path.join(args.home, path)
            os.makedirs(os.path.dirname(full), exist_ok=True)
            if read_text(full) != text:
                write_file(full, text)
    return {"files": len(lacks), "bytes": sum(file.size for _, _, file, _ in lacks)}


def main(argv):
    parser = argparse.ArgumentParser(prog="online")
    parser.add_argument("--lock", required=True)
    parser.add_argument("--home", required=True)
    args = parser.parse_args(argv)
    os.umask(0o022)
    return print_answer(lambda: run(args), args.home)
