"""The store, and the directory of a bundle: what lies in them, and what their records say."""

from __future__ import annotations

import os
import zipfile
import zlib
from typing import Any

from tasks.remote.common.files import is_locked
from tasks.remote.inspect import release
from tasks.remote.inspect.machine import filesystem
from tasks.remote.inspect.reading import file_sizes, parse_object, read, read_object
from tasks.shared.facts import Bundle, Store
from tasks.shared.names import SHA256


def store(path: str) -> Store:
    """The store in `path`. Parts that do not exist are empty or None."""
    inside = {name: os.path.join(path, name) for name in ("blobs", "releases", "state")}
    built = releases(inside["releases"])
    locks = {name: read(os.path.join(inside["releases"], name, "lock.json")) for name in built or []}
    checked = {
        name: release.damaged(os.path.join(inside["releases"], name), inside["blobs"], text)
        for name, text in locks.items()
    }
    return Store(
        blobs=file_sizes(inside["blobs"]),
        incoming=file_sizes(os.path.join(path, "incoming")),
        fetching=file_sizes(os.path.join(path, "fetch")),
        releases=built,
        damaged={name: files for name, files in checked.items() if files},
        states={name: release.state(os.path.join(inside["state"], name)) for name in folders(inside["state"]) or []},
        locks=locks,
        lease=lease(path),
        recreate=os.path.exists(os.path.join(inside["state"], "recreate")),
        pending=mark(os.path.join(inside["state"], "pending")),
        not_readmitted=mark(os.path.join(inside["state"], "not-readmitted")),
        frozen=mark(os.path.join(inside["state"], "frozen")),
        switching=is_locked(os.path.join(path, ".switch.lock")),
        confirmed_at=confirmed_at(os.path.join(path, "journal.jsonl")),
        current=word(os.path.join(path, "current")),
        previous=word(os.path.join(path, "previous")),
        tools=tools(os.path.join(path, "tool")),
        mounted=os.path.ismount(path),
        devices=sorted({os.stat(os.path.join(path, name)).st_dev for name in folders(path) or []}),
    )


def bundle(path: str) -> Bundle:
    """The directory of a bundle. bundle.json is written last: without it, the bundle is not complete."""
    about = read_object(os.path.join(path, "bundle.json")) or {}
    named = about.get("release")
    parts = file_sizes(os.path.join(path, "parts"))
    return Bundle(filesystem=filesystem(path), parts=parts, release=named if isinstance(named, str) else None)


def releases(directory: str) -> list[str] | None:
    """The ids of the releases that are built, sorted; [] if the directory is missing, None if it cannot be read."""
    try:
        return sorted(filter(SHA256.fullmatch, os.listdir(directory)))
    except FileNotFoundError:
        return []
    except OSError:
        return None


def folders(directory: str) -> list[str] | None:
    """The names of the directories in a directory, sorted; [] if that is missing, None if it cannot be read."""
    try:
        return sorted(name for name in os.listdir(directory) if os.path.isdir(os.path.join(directory, name)))
    except FileNotFoundError:
        return []
    except OSError:
        return None


def mark(path: str) -> dict[str, Any] | None:
    """A record whose existence matters. Return its JSON object, or {"why": …} with its text if it is not one."""
    if not os.path.lexists(path):
        return None
    text = read(path)
    return parse_object(text) or {"why": f"{path} is not a record of ours: {(text or 'not readable')[:200]!a}"}


def word(path: str) -> str | None:
    """The one word of a record, or None if there is none."""
    return (read(path) or "").strip() or None


def lease(path: str) -> dict[str, Any] | None:
    """The note of the rollout that holds this host; {} if the lock is held but the note is missing; None if nobody holds it.

    A living process holds the lock file. A note alone is no lease.
    """
    if not is_locked(os.path.join(path, ".lease.lock")):
        return None
    return read_object(os.path.join(path, "lease.json")) or {}


def confirmed_at(journal: str) -> str | None:
    """When the current release was confirmed: the time of the last line with step `confirm`, or None."""
    for line in reversed((read(journal) or "").splitlines()):
        entry = parse_object(line) or {}
        if entry.get("step") == "confirm":
            return entry["time"] if isinstance(entry.get("time"), str) else None
    return None


def tools(directory: str) -> list[str]:
    """Tools that are complete zip files, sorted. An incomplete one is not listed, so the control machine sends it again."""
    return [name for name in sorted(file_sizes(directory) or {}) if is_whole_zip(os.path.join(directory, name))]


def is_whole_zip(path: str) -> bool:
    """Whether a zip can be read, and each of its files has its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError):
        return False
