"""The volume into which a host loads a model by itself (delivery `online`): loaded, then checked byte by byte against the lock."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tasks.remote.common.docker import docker, is_installed
from tasks.remote.common.files import hash_files
from tasks.remote.common.trees import differences
from tasks.remote.host.one_off import OneOff, run_once
from tasks.remote.host.records import Records
from tasks.shared import layout
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock
from tasks.shared.stack import LOADER

OWN = ".lock"  # the loader's own file in the volume


def bring(store: str, where: OneOff, lock: Lock) -> dict[str, Any]:
    """Let the service hf-model load the volume, and check every byte of it. Load once more what is not as locked.

    Return {"bytes": loaded}, or the loader's own refusal. Raise Refused where it is not right after the second time.
    """
    loaded = 0
    found: dict[str, str] = {}
    # The first time, the loader hashes no file that has the right size.
    for options in ([], ["--env", "HF_OFFLINE_FULL=1"]):
        answer, _ = run_once(where, LOADER, "loading the model", "setting fetch_deadline", options)
        if not answer.get("ok"):
            return answer
        loaded += answer["bytes"]
        found = faults(lock)
        if not found:
            return {"bytes": loaded}
        records = Records(store)
        if lock.id in records.serving():
            records.require_recreate()  # the running process may have mapped what is wrong
        remove_extra(lock, found)
    odd = ", ".join(f"{path} {what}" for path, what in sorted(found.items())[:3])
    raise Refused(lock.volume, "does not match the lock", "every byte as locked", odd, "who writes there?")


def mountpoint(lock: Lock) -> str | None:
    """Where the engine keeps the volume of this release, or None."""
    if not is_installed():
        return None
    done = docker("volume", "inspect", "-f", "{{.Mountpoint}}", lock.volume)
    return done.stdout.strip() if done.returncode == 0 else None


def faults(lock: Lock) -> dict[str, str]:
    """What in the volume is not as locked: {path: "missing", "extra" or "changed"}. Every blob is hashed."""
    root = mountpoint(lock)
    if root is None:
        return {lock.volume: "missing"}
    tree = layout.cache_tree(lock)
    hashed = hash_files([os.path.join(root, path) for path in tree.blobs])
    found = differences(root, tree, lambda path, sha256: hashed[path] != sha256)
    found.pop(OWN, None)
    return found


def remove_extra(lock: Lock, found: Mapping[str, str]) -> None:
    """Remove what is not of the release. A damaged file stays until the loader replaces it: a service runs on it."""
    root = mountpoint(lock)
    for path, what in found.items():
        if root and what == "extra":
            os.unlink(os.path.join(root, path))
