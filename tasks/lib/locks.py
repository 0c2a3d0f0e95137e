"""The lock and the goldens as files in git, `group_data/locks/`: the only files that the control machine writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.lib.release import Lock, Refused, parse
from tasks.lib.settings import Settings

FOLDER = Path("group_data/locks")


def lock_path(settings: Settings) -> Path:
    return FOLDER / f"{settings.lock}.json"


def replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.new")
    staged.write_text(text, encoding="ascii")
    staged.replace(path)


def read_lock(settings: Settings, inventory: str) -> Lock:
    """The lock that git holds, held against the settings; one clear error without it."""
    path, mend = lock_path(settings), f"pyinfra -y {inventory} tasks/lock.py"
    if not path.exists():
        raise Refused(str(path), "does not exist", "a lock", "no file", mend)
    lock = parse(path.read_text(encoding="utf-8"), str(path))
    wanted = {model.repo: model.revision for model in settings.models}
    if dict(lock.asked) != wanted:
        raise Refused(
            str(path), "was made for other models than the settings ask for", str(wanted), str(dict(lock.asked)), mend
        )
    serve = {"smoke_command": [], "image_processor": "default", **lock.serve}
    for key in ("dtype", "attention", "family", "smoke_command", "image_processor"):
        wanted_here = getattr(settings, key)
        if serve.get(key) != wanted_here:
            raise Refused(str(path), f"has another {key}", str(wanted_here), str(serve.get(key)), mend)
    return lock


class Goldens:
    """Embeddings of fixed pages and queries, by class (`cpu/bfloat16`); they belong to one release."""

    def __init__(self, settings: Settings):
        self.path = FOLDER / f"{settings.lock}.goldens.json"

    def document(self) -> dict[str, Any]:
        try:
            return json.loads(self.path.read_text(encoding="ascii"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise Refused(str(self.path), "is not JSON", found=str(error), next="git checkout of that file") from None

    def has(self, lock: Lock) -> bool:
        return self.document().get("release") == lock.id

    def text(self, lock: Lock) -> str:
        return self.path.read_text(encoding="ascii")

    def save(self, lock: Lock, embeddings: Mapping[str, Any] | None) -> None:
        classes = {embeddings["class"]: embeddings} if embeddings else {}  # a smoke command may embed nothing
        document = {"release": lock.id, "classes": classes}
        replace(self.path, json.dumps(document, sort_keys=True, indent=1) + "\n")
