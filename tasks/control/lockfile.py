"""The lock and the goldens as files in git, `group_data/locks/`: the only files that the control machine writes."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.control.settings import Settings
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock, lock_text, parse_lock
from tasks.shared.signatures import NAMESPACE, sign_command

FOLDER = Path("group_data/locks")


def text_of(path: Path) -> str:
    """The text of one of our files in git; Refused where it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(str(path), "cannot be read", "a text file", str(error), f"git checkout {path}") from None


def lock_path(settings: Settings) -> Path:
    return FOLDER / f"{settings.lock}.json"


def replace(path: Path, text: str) -> None:
    """Stage, rename; the signature of what stood there goes first: it is not one of this."""
    path.parent.mkdir(parents=True, exist_ok=True)
    signature_path(path).unlink(missing_ok=True)
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


def signature_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sig")


def signature(path: Path) -> str | None:
    """What `ssh-keygen -Y sign` wrote beside a file."""
    file = signature_path(path)
    return file.read_text(encoding="ascii", errors="replace") if file.exists() else None


def signatures(settings: Settings, golden: bool) -> dict[str, str | None]:
    """The signatures in git of the lock and, where the release has some (`golden`), of its goldens."""
    goldens = Goldens(settings).path
    return {"lock": signature(lock_path(settings)), "goldens": signature(goldens) if golden else None}


def signed(settings: Settings, lock: Lock) -> dict[str, Any]:
    """Lock and goldens (None before they are made), byte for byte as git has them, and the signatures of those bytes."""
    goldens = Goldens(settings)
    paths = {"lock": lock_path(settings), "goldens": goldens.path if goldens.has(lock) else None}
    return {
        name: path and {"path": str(path), "text": path.read_bytes().decode("utf-8"), "signature": signature(path)}
        for name, path in paths.items()
    }


def unsigned(settings: Settings, lock: Lock) -> list[str]:
    """The files of this release in git that nobody has signed yet."""
    return [entry["path"] for entry in signed(settings, lock).values() if entry and not entry["signature"]]


def check_signed(settings: Settings, lock: Lock) -> None:
    """Before any host is touched: with `sign` nothing is unsigned, and a signature that is there fits its file.

    Whether the key may sign is not for this machine to say: the hosts check that, and all of it again.
    """
    files = unsigned(settings, lock)
    if settings.sign and files:
        lacks = " and ".join(files)
        raise Refused(lacks, "not signed, and sign is on", "a signature beside it", "none", sign_command(*files))
    for entry in signed(settings, lock).values():
        if entry and entry["signature"]:
            fits(entry["path"], entry["text"].encode("utf-8"))
    path = lock_path(settings)
    if str(path) not in files and path.read_bytes() != lock_text(lock.document).encode("ascii"):
        expected, found = "its text byte for byte as tasks/lock.py writes it", "other bytes for the same lock"
        raise Refused(
            str(path), "is signed in a form of its own", expected, found, "git checkout of it, or sign it anew"
        )


def fits(path: str, data: bytes) -> None:
    command = ["ssh-keygen", "-Y", "check-novalidate", "-n", NAMESPACE, "-s", str(signature_path(Path(path)))]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=60)
    except FileNotFoundError:
        raise Refused("ssh-keygen", "is missing on this machine", next="install OpenSSH's client") from None
    if done.returncode:
        found = "; ".join(done.stderr.decode("utf-8", "replace").strip().splitlines()[:3])
        expected = f"one of these very bytes, in the namespace {NAMESPACE}"
        raise Refused(
            path, "has a signature that does not fit", expected, found, f"rm {path}.sig && {sign_command(path)}"
        )


def read_lock(settings: Settings, inventory: str) -> Lock:
    """The lock that git holds, held against the settings; one clear error without it."""
    path, mend = lock_path(settings), f"pyinfra -y {inventory} tasks/lock.py"
    if settings.source == "bundle":
        mend = f"cp lock.json {path}, from the bundle"
    if not path.exists():
        raise Refused(str(path), "does not exist", "a lock", "no file", mend)
    try:
        lock = parse_lock(text_of(path), str(path))
    except Refused as no:  # as after a merge
        raise Refused(**{**no.error, "next": f"git checkout {path}"}) from None
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


def locked(settings: Settings) -> Lock | None:
    """The lock in git, whatever it was made for; None without one that can be read."""
    try:
        return parse_lock(text_of(lock_path(settings)), "")
    except Refused:
        return None


def old_lock(settings: Settings) -> dict[str, Any] | None:
    """The lock that a new one follows, as it stands in git, whatever it was made for; None without one."""
    path = lock_path(settings)
    if not path.exists():
        return None
    try:
        return dict(parse_lock(text_of(path), str(path)).document)
    except Refused as no:
        mend = f"git checkout {path}; or rm it, for one that follows nothing"
        raise Refused(str(path), "is no lock that a new one can follow", found=str(no), next=mend) from None


def sound(entry: Any) -> bool:
    """Whether the goldens of a class are whole: queries, the vectors of each, and as many numbers as their shape says."""
    try:
        vectors, queries = entry["vectors"], entry["queries"]
        sizes = {name: len(base64.b64decode(each["f16"], validate=True)) for name, each in vectors.items()}
        shapes = {name: each["shape"][0] * each["shape"][1] * 2 for name, each in vectors.items()}
        named = all(isinstance(text, str) and f"query{n}" in vectors for n, text in enumerate(queries))
    except (LookupError, TypeError, AttributeError, ValueError):
        return False
    return bool(queries) and named and sizes == shapes and all(min(each["shape"]) > 0 for each in vectors.values())


class Goldens:
    """Embeddings of fixed pages and queries, by class (`cpu/bfloat16`); they belong to one release."""

    def __init__(self, settings: Settings):
        self.path = FOLDER / f"{settings.lock}.goldens.json"

    def document(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        text, mend = text_of(self.path), f"git checkout {self.path}"
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Refused(str(self.path), "is not JSON", found=str(error), next=mend) from None
        classes = found.get("classes") if isinstance(found, dict) else None
        if not isinstance(classes, dict) or not all(map(sound, classes.values())):
            expected = '{"release": id, "classes": {class: {"queries": […], "vectors": {…}}}}'
            raise Refused(str(self.path), "holds no goldens", expected, ascii(text[:80]), mend)
        return found

    def has(self, lock: Lock) -> bool:
        return self.document().get("release") == lock.id

    def text(self, lock: Lock) -> str:
        return text_of(self.path)

    def digest(self, lock: Lock) -> str | None:
        """sha256 of the goldens of this release, or None before they are made."""
        return hashlib.sha256(self.text(lock).encode()).hexdigest() if self.has(lock) else None

    def save(self, lock: Lock, embeddings: Mapping[str, Any] | None) -> None:
        classes = {embeddings["class"]: embeddings} if embeddings else {}  # a smoke command may embed nothing
        document = {"release": lock.id, "classes": classes}
        replace(self.path, json.dumps(document, sort_keys=True, indent=1) + "\n")
