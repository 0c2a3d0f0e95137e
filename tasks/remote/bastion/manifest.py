"""bundle.json: what a bundle says of itself. It is written last, so a bundle without it was cut off."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from typing import Any

from tasks.remote.common.files import read_text, write_file
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock
from tasks.shared.names import SHA256

FORMAT = 1
NAME = "bundle.json"


@dataclass(frozen=True)
class Part:
    """A file of the bundle that is a blob, or a range of one: `size` bytes from `offset`."""

    name: str
    blob: str
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A bundle of one release.

    files: {name: {"size", "sha256"}} of everything that is no part. without: {sha256: size} of the blobs that were left out,
    as the far side has them; contents_at: when it said so. who, at: by whom and when the bundle was written.
    """

    release: str
    part_size: int
    parts: list[Part]
    files: dict[str, dict[str, Any]]
    without: dict[str, int]
    contents_at: str | None
    who: str
    at: str
    format: int = FORMAT

    def is_written(self, folder: str) -> bool:
        """Whether the bundle in `folder` says the same. Who wrote it and when may differ."""
        try:
            found = json.loads(read_text(os.path.join(folder, NAME)) or "")
        except ValueError:
            return False
        notes = {"at": None, "who": None}
        return isinstance(found, dict) and {**found, **notes} == {**dataclasses.asdict(self), **notes}

    def write(self, folder: str) -> None:
        """Write bundle.json to a drive."""
        text = json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"
        write_file(os.path.join(folder, NAME), text, None)


def read_manifest(folder: str, lock: Lock) -> Manifest:
    """The manifest of the bundle in `folder`. Raise Refused where it is none, or is of another release than the lock's.

    Its names and numbers are judged, because a drive comes from anybody.
    """
    path = os.path.join(folder, NAME)
    text = read_text(path)
    if text is None:
        found = "no drive, or one whose writing was cut off" if os.path.isdir(folder) else "no such directory"
        expected, fix = "a bundle that was written to its end", "mount it, or write it again"
        raise Refused(path, "is not there", expected, found, fix)
    try:
        manifest = parse_manifest(json.loads(text))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        fix = "the tool of the bundle, or write it again"
        raise Refused(path, f"is no bundle of format {FORMAT}", next=fix) from None
    if manifest.release != lock.id:
        fix = "the right drive, or its lock.json into group_data/locks/"
        raise Refused(path, "is of another release", lock.id, ascii(manifest.release)[:70], fix)
    return manifest


def parse_manifest(found: Any) -> Manifest:
    """The manifest in a JSON value. Raise ValueError, LookupError, TypeError or AttributeError where it is none."""
    if found["format"] != FORMAT:
        raise ValueError("another format")
    parts = [Part(**part) for part in found["parts"]]
    if not all(is_safe(part) for part in parts):
        raise ValueError("an unsafe part")
    return Manifest(**{**found, "parts": parts, "without": dict(found["without"])})


def is_safe(part: Part) -> bool:
    """Whether a part's name stays in the bundle, and its numbers are numbers."""
    return bool(
        SHA256.fullmatch(part.blob)
        and SHA256.fullmatch(part.sha256)
        and re.fullmatch(rf"parts/{part.blob}(\.\d{{3,}})?", part.name)
        and type(part.offset) is type(part.size) is int
        and min(part.offset, part.size) >= 0
    )
