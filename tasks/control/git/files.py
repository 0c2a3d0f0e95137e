"""The files that the control machine writes for git: read as text, replaced whole, with their signatures beside them."""

from __future__ import annotations

from pathlib import Path

from tasks.shared.errors import Refused

FOLDER = Path("group_data/locks")


def read_text(path: Path) -> str:
    """The text of one of our files in git. Raises Refused where it cannot be read as text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(str(path), "cannot be read", "a text file", str(error), f"git checkout {path}") from None


def replace(path: Path, text: str) -> None:
    """Write the file beside its place, then rename it. The old signature goes first: it does not fit the new text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    signature_path(path).unlink(missing_ok=True)
    staged = path.with_name(f".{path.name}.new")
    staged.write_text(text, encoding="ascii")
    staged.replace(path)


def signature_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sig")


def signature(path: Path) -> str | None:
    """What `ssh-keygen -Y sign` wrote beside a file, or None."""
    file = signature_path(path)
    return file.read_text(encoding="ascii", errors="replace") if file.exists() else None
