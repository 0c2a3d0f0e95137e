"""The lock as a file in git, `group_data/locks/`, held against the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.control.git.files import FOLDER, read_text
from tasks.control.settings import Settings
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock, parse_lock


def lock_path(settings: Settings) -> Path:
    return FOLDER / f"{settings.lock}.json"


def served(settings: Settings) -> dict[str, Any]:
    """The settings that change what is served, as they stand in a lock. A value that is the default stands in none."""
    serve: dict[str, Any] = {key: getattr(settings, key) for key in ("family", "dtype", "attention")}
    serve["model"] = settings.models[0].repo
    for key in ("smoke_command", "image_processor", "delivery"):
        if getattr(settings, key) != Settings.model_fields[key].default:
            serve[key] = getattr(settings, key)
    if settings.delivery == "bake":
        serve["hf_home"] = settings.hf_home
    return serve


def read_lock(settings: Settings, inventory: str) -> Lock:
    """The lock in git, if it is one for these settings. Raises Refused, with the command that makes it, if not.

    `inventory`: as the operator typed it, for that command.
    """
    path, fix = lock_path(settings), f"pyinfra -y {inventory} tasks/lock.py"
    if settings.source == "bundle":
        fix = f"cp lock.json {path}, from the bundle"
    if not path.exists():
        raise Refused(str(path), "does not exist", "a lock", "no file", fix)
    try:
        lock = parse_lock(read_text(path), str(path))
    except Refused as no:  # as after a merge
        raise Refused(**{**no.error, "next": f"git checkout {path}"}) from None
    wanted = {model.repo: model.revision for model in settings.models}
    if dict(lock.asked) != wanted:
        what = "was made for other models than the settings ask for"
        raise Refused(str(path), what, str(wanted), str(dict(lock.asked)), fix)
    serve = served(settings)
    for key in sorted({*serve, *lock.serve}):
        if lock.serve.get(key) != serve.get(key):
            usual = Settings.model_fields[key].default if key in Settings.model_fields else "none"
            expected, found = str(serve.get(key, usual)), str(lock.serve.get(key, usual))
            raise Refused(str(path), f"has another {key} than the settings ask for", expected, found, fix)
    return lock


def lock_in_git(settings: Settings) -> Lock | None:
    """The lock in git, whatever it was made for. None without one that can be read."""
    try:
        return parse_lock(read_text(lock_path(settings)), "")
    except Refused:
        return None


def old_lock(settings: Settings) -> dict[str, Any] | None:
    """The document of the lock that a new one follows, whatever it was made for. None without a file.

    Raises Refused where the file is no lock: what a new one would follow is not known then.
    """
    path = lock_path(settings)
    if not path.exists():
        return None
    try:
        return dict(parse_lock(read_text(path), str(path)).document)
    except Refused as no:
        fix = f"git checkout {path}; or rm it, for one that follows nothing"
        raise Refused(str(path), "is no lock that a new one can follow", found=str(no), next=fix) from None
