"""Downloads the model blobs that the store lacks; each is hashed before it enters blobs/."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from tasks.remote.bastion.retry import patiently
from tasks.remote.common import hub as client
from tasks.remote.common.blobs import held, keep_blob
from tasks.remote.common.files import hash_file
from tasks.remote.common.hub import Hub
from tasks.shared.blobs import missing_blobs
from tasks.shared.errors import Refused
from tasks.shared.lock import File, Lock, Model

MARGIN = 16 << 20  # bytes that stay free, beside 5 % of what is downloaded
ATTEMPTS = 2  # downloads of one file whose hash is wrong


@dataclass(frozen=True)
class Downloaded:
    """What a download brought: files, their bytes, and how many files the store had before."""

    files: int
    bytes: int
    reused: int


def download(store: str, hub: Hub, lock: Lock) -> Downloaded:
    """Bring every model blob of the lock into the store. A blob that is whole stays there, however this ends."""
    wanted = lock.model_blobs()
    missing = missing_blobs(wanted, held(store, wanted))
    if missing:
        check_room(store, missing)
    waiting = set(missing)
    for model in lock.models:
        for name, file in model.files.items():
            if file.sha256 in waiting:
                download_one(store, hub, model, name, file)
                waiting.remove(file.sha256)
    return Downloaded(len(missing), sum(missing.values()), len(wanted) - len(missing))


def check_room(store: str, missing: Mapping[str, int]) -> None:
    """Raise Refused where the store has too little space, or too few inodes, for {blob: bytes}."""
    stat = os.statvfs(store)
    bytes_needed, free = int(sum(missing.values()) * 1.05) + MARGIN, stat.f_bavail * stat.f_frsize
    if free < bytes_needed:
        fix = "free some, or a larger disk"
        raise Refused(store, "has too little space", f"{bytes_needed} bytes", f"{free} free", fix)
    inodes_needed = 4 * len(missing) + 50
    if stat.f_files and stat.f_favail < inodes_needed:  # a filesystem that counts no inodes says 0 files
        raise Refused(store, "has too few inodes", str(inodes_needed), f"{stat.f_favail} free", "free some")


def download_one(store: str, hub: Hub, model: Model, name: str, file: File) -> None:
    """Bring one file into the store. Raise Refused where its bytes are not the lock's, twice."""
    found = ""
    for attempt in range(1, ATTEMPTS + 1):
        path = patiently(
            lambda: client.download(hub, store, model.repo, model.commit, name), hub, model.repo, model.commit
        )
        sha256, size = hash_file(path), os.path.getsize(path)
        if (sha256, size) == (file.sha256, file.size):
            keep_blob(store, path, file.sha256)
            return
        # The client takes the file that it has for whole. Without that file, it downloads again.
        shutil.rmtree(os.path.join(store, "fetch", model.repo.replace("/", "--")), ignore_errors=True)
        print(f"{model.repo}: {name}: wrong hash, try {attempt}", file=sys.stderr)
        found = f"{size} bytes, sha256 {sha256}"
    where, expected = f"{model.repo}: {name}", f"{file.size} bytes, sha256 {file.sha256}"
    raise Refused(where, "does not match the lock", expected, found, "who is in between?")
