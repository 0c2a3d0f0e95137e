"""What the store keeps of one release: the records of its state, and whether its files are still those of its lock."""

from __future__ import annotations

import os
import sys
from typing import Any

from tasks.remote.common.files import hash_file
from tasks.remote.inspect.reading import parse_object, read, read_object
from tasks.shared.errors import Refused
from tasks.shared.facts import ReleaseState, Smoke, Verified
from tasks.shared.lock import Model, parse_lock


def state(folder: str) -> ReleaseState:
    """The records of a release in its folder below state/."""
    texts = {name: read(os.path.join(folder, name)) for name in ("verified-at", "smoke.json", "signed.json")}
    return ReleaseState(
        verified=verified(texts["verified-at"]),
        smoke=smoke(texts["smoke.json"]),
        has_candidate=os.path.isdir(os.path.join(folder, "candidate")),
        override=read(os.path.join(folder, "compose.override.yaml")),
        confirmed=read(os.path.join(folder, "compose.confirmed.yaml")),
        baked=read_object(os.path.join(folder, "baked.json")),
        signatures=signatures(texts["signed.json"]),
        goldens=digest(os.path.join(folder, "goldens.json")),
    )


def verified(text: str | None) -> Verified | None:
    """When the release was hashed here, or None where that cannot be read."""
    found = parse_object(text) or {}
    at: Any = found.get("at")
    epoch: Any = found.get("epoch")
    return Verified(at=at, epoch=float(epoch)) if isinstance(at, str) and is_number(epoch) else None


def smoke(text: str | None) -> Smoke | None:
    """The answer of a smoke test, or None where a value in it is not what a smoke test writes."""
    found = parse_object(text) or {}
    ok: Any = found.get("ok")
    attempts: Any = found.get("outbound_attempts")
    versions: Any = found.get("versions")
    rows: list[Any] = [{} if found.get(key) is None else found[key] for key in ("cosine", "latency_ms")]
    numbers = [number for row in rows if isinstance(row, dict) for number in row.values() if number is not None]
    fine = (
        isinstance(ok, bool)
        and type(attempts) is int
        and all(isinstance(row, dict) for row in rows)
        and all(is_number(number) for number in numbers)
        and (versions is None or is_text_by_name(versions))
    )
    if not fine:
        return None
    cosine, latency = rows
    return Smoke(
        ok=ok,
        cosine=cosine.get("mean"),
        latency_ms=latency.get("page"),
        outbound_attempts=attempts,
        versions=versions,
    )


def signatures(text: str | None) -> dict[str, str | None] | None:
    """{"lock": signature, "goldens": signature or None} that the host keeps of the release, or None."""
    kept = parse_object(text)
    if not kept:
        return None
    found = {name: entry.get("signature") if isinstance(entry, dict) else None for name, entry in kept.items()}
    return {name: signature if isinstance(signature, str) else None for name, signature in found.items()}


def digest(path: str) -> str | None:
    """The sha256 of a file, or None where it is missing or cannot be read."""
    try:
        found: str = hash_file(path)
    except OSError:
        return None
    return found


def is_number(found: Any) -> bool:
    """Whether a JSON value is a finite number. JSON knows NaN, and Python takes booleans for numbers."""
    return type(found) in (int, float) and abs(found) <= sys.float_info.max


def is_text_by_name(found: Any) -> bool:
    """Whether a JSON value is {name: text}."""
    return isinstance(found, dict) and all(isinstance(value, str) for value in found.values())


def damaged(root: str, blobs: str, text: str | None) -> list[str]:
    """The files of a release's cache that are gone, of another size, or another file than the store's blob; sorted.

    `root`: the release's directory. `blobs`: that of the store. `text`: the release's own lock. Without a lock that can be
    read, the list is empty: `locks` says that the lock is missing.
    """
    try:
        lock = parse_lock(text or "")
    except Refused:
        return []
    models: tuple[Model, ...] = () if lock.delivery == "online" else lock.models
    return sorted(f"{model.repo}/{path}" for model in models for path in damaged_files(root, blobs, model))


def damaged_files(root: str, blobs: str, model: Model) -> list[str]:
    """The same for one model: paths in its folder of the cache."""
    top = os.path.join(root, "hub", model.folder)
    found = []
    for name, file in model.files.items():
        path = os.path.join("snapshots", model.commit, name)
        if not is_whole(os.path.join(top, path), file.size, os.path.join(blobs, file.sha256)):
            found.append(path)
    if not is_whole(os.path.join(top, "refs/main"), len(model.commit)):
        found.append("refs/main")
    return found


def is_whole(path: str, size: int, blob: str | None = None) -> bool:
    """Whether `path` is a file of `size` bytes and, where the store has `blob`, that very file.

    Blobs are hard links. A blob may be gone from the store and still be here, where the service has it mounted.
    """
    try:
        has_size = os.path.isfile(path) and os.path.getsize(path) == size
        return has_size and (blob is None or not os.path.exists(blob) or os.path.samefile(path, blob))
    except OSError:  # it was removed between two of these calls
        return False
