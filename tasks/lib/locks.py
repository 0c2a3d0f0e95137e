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


def served(settings: Settings) -> dict[str, Any]:
    """The settings that change what is served, as they stand in a lock; what is its default stands in none."""
    serve: dict[str, Any] = {key: getattr(settings, key) for key in ("family", "dtype", "attention")}
    serve["model"] = settings.models[0].repo
    for key in ("smoke_command", "image_processor", "delivery"):
        if getattr(settings, key) != Settings.model_fields[key].default:
            serve[key] = getattr(settings, key)
    if settings.delivery == "bake":
        serve["hf_home"] = settings.hf_home
    return serve


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
    serve = served(settings)
    for key in sorted({*serve, *lock.serve}):
        if lock.serve.get(key) != serve.get(key):
            usual = Settings.model_fields[key].default if key in Settings.model_fields else "none"
            expected, found = str(serve.get(key, usual)), str(lock.serve.get(key, usual))
            raise Refused(str(path), f"has another {key} than the settings ask for", expected, found, mend)
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
