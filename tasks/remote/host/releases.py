"""The releases of a store: each a directory of hard links into blobs/, built beside its place and renamed whole."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection
from typing import Any

from tasks.remote.common.files import sync_folder
from tasks.remote.common.trees import differences
from tasks.remote.host.records import Records
from tasks.shared import layout
from tasks.shared.errors import Refused
from tasks.shared.layout import Tree
from tasks.shared.lock import Lock
from tasks.shared.names import SHA256


def faults(store: str, root: str, tree: Tree) -> list[str]:
    """What in a release's directory is not as its lock says: `missing PATH`, `changed PATH` or `extra PATH`.

    No blob is read. A hard link to another file than the store's blob is a change, because only the store's are hashed.
    """
    found = differences(
        root, tree, lambda path, sha256: is_linked_elsewhere(path, os.path.join(store, "blobs", sha256))
    )
    elsewhere = {path for path, what in found.items() if what == "changed" and path in tree.blobs}
    return [f"{what} {path}" + (": not the blob of the store" * (path in elsewhere)) for path, what in found.items()]


def is_linked_elsewhere(path: str, blob: str) -> bool:
    """Whether the store has this blob, and `path` is another file."""
    return os.path.exists(blob) and not os.path.samefile(path, blob)


def build(store: str, lock: Lock, hashed: Collection[str] = frozenset()) -> dict[str, Any]:
    """Build releases/<id> from blobs/ where it is not there or not as its lock says. Link all releases to blobs/ again.

    `hashed`: the blobs that were hashed just now. Return {"built": bool, "replaced": bool, "relinked": {id: [path]}}.
    """
    root = os.path.join(store, "releases", lock.id)
    tree = layout.tree(lock)
    relinked = relink_all(store, lock, tree, hashed)
    if os.path.isdir(root) and not faults(store, root, tree):
        return {"built": False, "replaced": False, "relinked": relinked}
    staged = os.path.join(store, "releases", f".{lock.id}.new")
    if os.path.lexists(staged):
        shutil.rmtree(staged)
    write_tree(store, staged, tree)
    replaced = put_in_place(store, staged, root)
    Records(store).mark_verified(lock.id, "admit")
    return {"built": True, "replaced": replaced, "relinked": relinked}


def write_tree(store: str, staged: str, tree: Tree) -> None:
    """Write a release's directory: texts, hard links into blobs/, links. All of it is on disk when this returns."""
    for path, text in tree.texts.items():
        with open(new_path(staged, path), "w", encoding="utf-8", newline="") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o444)
            file.flush()
            os.fsync(file.fileno())
    for path, sha256 in tree.blobs.items():
        os.link(os.path.join(store, "blobs", sha256), new_path(staged, path))
    for path, target in tree.links.items():
        os.symlink(target, new_path(staged, path))
    for folder, _, _ in os.walk(staged):
        os.chmod(folder, 0o555)
        sync_folder(folder)


def new_path(root: str, path: str) -> str:
    """The full path of a new file below `root`, whose directory is there from now on."""
    full = os.path.join(root, path)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    return full


def put_in_place(store: str, staged: str, root: str) -> bool:
    """Rename a directory that was built to its place. Return whether another one was there, which is then aside."""
    records, release_id = Records(store), os.path.basename(root)
    is_there = os.path.isdir(root)
    if is_there or release_id in records.serving():
        # First of all: a container may have the old directory mounted, even when this run ends half-way.
        records.require_recreate()
    if is_there:
        # It stays aside until nothing uses it. It is not as its lock says, and a release is never patched.
        os.rename(root, os.path.join(store, "releases", f".{release_id}.{time.time_ns()}.aside"))
    os.rename(staged, root)
    sync_folder(os.path.dirname(root))
    return is_there


# ------------------------------------------------------------------------------------------------------- links after a repair


def relink_all(store: str, lock: Lock, tree: Tree, hashed: Collection[str]) -> dict[str, list[str]]:
    """Link every release here to blobs/ again. Return {id: [path that changed]}. `lock`, `tree`: the release that is being built.

    A release that is now linked to a blob that nobody hashed is not proven any more.
    """
    relinked = {}
    for name in filter(SHA256.fullmatch, os.listdir(os.path.join(store, "releases"))):
        other = tree if name == lock.id else tree_of(store, name)
        if other is None:
            continue
        changed = relink(store, os.path.join(store, "releases", name), other)
        if changed:
            relinked[name] = changed
        if any(other.blobs[path] not in hashed for path in changed):
            Records(store).forget_verified(name)
    return relinked


def relink(store: str, root: str, tree: Tree) -> list[str]:
    """Link the files of a release to blobs/ again, by rename: a repaired blob is another file. Return what changed.

    A file that is missing in the release is left out: `build` builds such a release again.
    """
    records = Records(store)
    is_serving = os.path.basename(root) in records.serving()
    changed = []
    for path, sha256 in tree.blobs.items():
        blob, full = os.path.join(store, "blobs", sha256), os.path.join(root, path)
        if os.path.exists(blob) and os.path.isfile(full) and not os.path.samefile(blob, full):
            if is_serving:
                records.require_recreate()  # the running process has the old file mapped
            staged = os.path.join(store, "releases", f".relink.{os.getpid()}")
            os.link(blob, staged)
            os.rename(staged, full)
            changed.append(path)
    return changed


def tree_of(store: str, name: str) -> Tree | None:
    """The tree of a release that is here, or None where its lock cannot be read: that is no fault of another release."""
    try:
        return layout.tree(Records(store).lock(name))
    except Refused:
        return None
