"""Goldens: the embeddings of fixed pages and queries by one release. They stand next to its lock in git."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.control.git.files import FOLDER, read_text, replace
from tasks.control.settings import Settings
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock


class Goldens:
    """The file of goldens that belongs to the settings' lock. `by class` means by device and dtype, as `cpu/bfloat16`."""

    def __init__(self, settings: Settings):
        self.path: Path = FOLDER / f"{settings.lock}.goldens.json"

    def document(self) -> dict[str, Any]:
        """{"release": id, "classes": {class: {"queries", "vectors", …}}}; {} without a file. Raises Refused for another."""
        if not self.path.exists():
            return {}
        text, fix = read_text(self.path), f"git checkout {self.path}"
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Refused(str(self.path), "is not JSON", found=str(error), next=fix) from None
        classes = found.get("classes") if isinstance(found, dict) else None
        if not isinstance(classes, dict) or not all(map(_is_complete, classes.values())):
            expected = '{"release": id, "classes": {class: {"queries": […], "vectors": {…}}}}'
            raise Refused(str(self.path), "holds no goldens", expected, ascii(text[:80]), fix)
        return dict(found)

    def belong_to(self, lock: Lock) -> bool:
        """Whether these are the goldens of this release."""
        return self.document().get("release") == lock.id

    def text(self) -> str:
        return read_text(self.path)

    def digest(self, lock: Lock) -> str | None:
        """The sha256 of the goldens of this release, or None before they are made."""
        return hashlib.sha256(self.text().encode()).hexdigest() if self.belong_to(lock) else None

    def save(self, lock: Lock, embeddings: Mapping[str, Any] | None) -> None:
        """Write the goldens of a release. A `smoke_command` may embed nothing: then no class is written."""
        classes = {embeddings["class"]: embeddings} if embeddings else {}
        document = {"release": lock.id, "classes": classes}
        replace(self.path, json.dumps(document, sort_keys=True, indent=1) + "\n")


def _is_complete(entry: Any) -> bool:
    """Whether the goldens of a class are whole: queries, the vectors of each, and as many numbers as their shape says."""
    try:
        vectors, queries = entry["vectors"], entry["queries"]
        sizes = {name: len(base64.b64decode(each["f16"], validate=True)) for name, each in vectors.items()}
        shapes = {name: each["shape"][0] * each["shape"][1] * 2 for name, each in vectors.items()}
        named = all(isinstance(text, str) and f"query{n}" in vectors for n, text in enumerate(queries))
    except (LookupError, TypeError, AttributeError, ValueError):
        return False
    return bool(queries) and named and sizes == shapes and all(min(each["shape"]) > 0 for each in vectors.values())
