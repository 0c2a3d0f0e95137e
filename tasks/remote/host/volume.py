"""The volume that a host loaded a model into by itself, judged from outside: every byte against the lock."""

from __future__ import annotations

import os
import shutil
import subprocess

from tasks.remote.common.files import hash_files
from tasks.remote.common.trees import differences
from tasks.shared import layout

OWN = ".lock"  # what the loading itself leaves there


def mountpoint(lock):
    """Where the engine keeps the volume of this release, or None."""
    if not shutil.which("docker"):
        return None
    words = ["docker", "volume", "inspect", "-f", "{{.Mountpoint}}", lock.volume]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() if done.returncode == 0 else None


def faults(lock):
    """{path: "missing", "extra" or "changed"}; every blob is hashed. {} is whole."""
    root = mountpoint(lock)
    if root is None:
        return {lock.volume: "missing"}
    tree = layout.cache_tree(lock)
    hashed = hash_files([os.path.join(root, path) for path in tree.blobs])
    found = differences(root, tree, lambda path, sha256: hashed[path] != sha256)
    found.pop(OWN, None)
    return found


def clear(lock, found):
    """Remove what is not of the release. What is damaged stays until the loader has its replacement: a service runs on it."""
    root = mountpoint(lock)
    for path, what in found.items():
        if root and what == "extra":
            os.unlink(os.path.join(root, path))
