"""Loads the locked model into a volume, in the backend's container: for hosts that are connected, or reach a mirror.

    online --lock /lock.json --home /models/hf   (environment: HF_ENDPOINT, HF_HUB_DISABLE_XET; HF_OFFLINE_FULL: hash all)

The service starts only after this has ended well, and reads the volume offline. So it gets the locked commit: no branch
that moved can change that, and no Hub that is down can stop it. A file that is there stays. Where no file is missing, the
network is asked nothing. The host judges the bytes again from outside (remote/host/volume.py). The answer is one JSON line
on standard output.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.remote.common.files import hash_file, hold_lock, print_answer, read_text, write_file
from tasks.remote.common.hub import Hub, brief, download, explain, no_hub
from tasks.shared.errors import Refused
from tasks.shared.layout import Tree, cache_tree
from tasks.shared.lock import File, Lock, Model, parse_lock

TRIES = 5  # of one file. The image has huggingface_hub, but no library for retries.


@dataclass(frozen=True)
class Options:
    """The command line: the path of the lock, and the cache's directory (HF_HOME)."""

    lock: str
    home: str


@dataclass(frozen=True)
class Missing:
    """A file that the cache lacks: the model and the name in it, and the path where its blob is to lie."""

    model: Model
    name: str
    file: File
    path: str


def main(argv: Sequence[str]) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(prog="online")
    parser.add_argument("--lock", required=True)
    parser.add_argument("--home", required=True)
    options = Options(**vars(parser.parse_args(argv)))
    os.umask(0o022)
    return print_answer(lambda: load(options), options.home)


def load(options: Options) -> dict[str, int]:
    """Complete the cache in `home`; return how many files and bytes were loaded for it."""
    lock = parse_lock(read_text(options.lock) or "", options.lock)
    hub = Hub(endpoint=os.environ["HF_ENDPOINT"])
    with hold_lock(os.path.join(options.home, ".lock"), "is being loaded into", within=600):
        missing = missing_files(options.home, lock, with_hashes=bool(os.environ.get("HF_OFFLINE_FULL")))
        for one in missing:
            load_one(options.home, hub, one)
        shutil.rmtree(os.path.join(options.home, "fetch"), ignore_errors=True)
        write_links(options.home, cache_tree(lock))
    return {"files": len(missing), "bytes": sum(one.file.size for one in missing)}


def missing_files(home: str, lock: Lock, with_hashes: bool) -> list[Missing]:
    """What the cache lacks, each blob once. A file counts by its size, or `with_hashes` by its sha256."""
    found: dict[str, Missing] = {}
    for model in lock.models:
        for name, file in model.files.items():
            path = os.path.join(home, "hub", model.folder, "blobs", file.etag)
            has_size = os.path.isfile(path) and os.path.getsize(path) == file.size
            if not has_size or (with_hashes and hash_file(path) != file.sha256):
                found.setdefault(path, Missing(model, name, file, path))
    return list(found.values())


def load_one(home: str, hub: Hub, missing: Missing) -> None:
    """Download one file. It gets its name in the cache after its hash is proven."""
    model, file = missing.model, missing.file
    staged = download_patiently(home, hub, missing)
    found = hash_file(staged)
    if found != file.sha256:
        # The client takes the file that it has for whole. Without that file, the next run downloads again.
        shutil.rmtree(os.path.join(home, "fetch"), ignore_errors=True)
        where = f"{model.repo}: {missing.name}"
        raise Refused(where, "does not match the lock", file.sha256, found, "who is in between?")
    os.chmod(staged, 0o444)
    os.makedirs(os.path.dirname(missing.path), exist_ok=True)
    os.replace(staged, missing.path)


def download_patiently(home: str, hub: Hub, missing: Missing) -> str:
    """The path of the download. A failure that may pass is tried again, TRIES times in all; else Refused."""
    repo, commit = missing.model.repo, missing.model.commit
    for attempt in range(TRIES):
        try:
            return download(hub, home, repo, commit, missing.name)
        except Exception as error:
            reason = explain(error, hub, repo, commit)
            if reason is None and attempt + 1 == TRIES:
                reason = no_hub(error, hub, repo, TRIES, "setting hub")
            if reason is not None:
                raise reason from None
            print(f"{repo}: {brief(error)}; again", file=sys.stderr)
            time.sleep(2**attempt)
    raise AssertionError("the last try returns or raises")


def write_links(home: str, tree: Tree) -> None:
    """The rest of the cache: its links and small files. refs/main comes last: a client finds a model by it."""
    for path, target in tree.links.items():
        full = os.path.join(home, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        if not os.path.islink(full) or os.readlink(full) != target:
            os.symlink(target, f"{full}.new")
            os.replace(f"{full}.new", full)
    for path, text in sorted(tree.texts.items(), key=lambda item: item[0].endswith("refs/main")):
        full = os.path.join(home, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        if read_text(full) != text:
            write_file(full, text)
