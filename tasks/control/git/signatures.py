"""The signatures of lock and goldens in git, as the control machine can check them.

Whether a key may sign is not for this machine to say: the hosts check that, and all of it again.
"""

from __future__ import annotations

import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.control.git.files import signature, signature_path
from tasks.control.git.goldens import Goldens
from tasks.control.git.lockfile import lock_path
from tasks.control.settings import Settings
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock, lock_text
from tasks.shared.signatures import NAMESPACE, sign_command


@dataclass(frozen=True)
class SignedFile:
    """A file in git, byte for byte, and what signs those bytes; None where nobody has signed it."""

    path: str
    text: str
    signature: str | None


def signatures(settings: Settings, with_goldens: bool) -> dict[str, str | None]:
    """The signatures in git: {"lock": …, "goldens": …}. Without `with_goldens` the second is None."""
    goldens = Goldens(settings).path
    return {"lock": signature(lock_path(settings)), "goldens": signature(goldens) if with_goldens else None}


def files_to_sign(settings: Settings, lock: Lock) -> dict[str, SignedFile]:
    """{"lock": …, "goldens": …} of the release; without goldens before they are made."""
    goldens = Goldens(settings)
    paths = {"lock": lock_path(settings)}
    if goldens.belong_to(lock):
        paths["goldens"] = goldens.path
    return {
        name: SignedFile(str(path), path.read_bytes().decode("utf-8"), signature(path)) for name, path in paths.items()
    }


def as_sent(settings: Settings, lock: Lock) -> dict[str, dict[str, Any] | None]:
    """The same as remote/host/signed.py reads it: {"lock": {"path", "text", "signature"}, "goldens": the same or None}."""
    files = files_to_sign(settings, lock)
    return {name: asdict(files[name]) if name in files else None for name in ("lock", "goldens")}


def unsigned_files(settings: Settings, lock: Lock) -> list[str]:
    """The files of this release in git that nobody has signed yet."""
    return [file.path for file in files_to_sign(settings, lock).values() if not file.signature]


def check_signatures(settings: Settings, lock: Lock) -> None:
    """Before any host is touched. Raises Refused where `sign` is on and a file is unsigned, or a signature does not fit."""
    unsigned = unsigned_files(settings, lock)
    if settings.sign and unsigned:
        names = " and ".join(unsigned)
        raise Refused(names, "not signed, and sign is on", "a signature beside it", "none", sign_command(*unsigned))
    for file in files_to_sign(settings, lock).values():
        if file.signature:
            check_fits(file.path, file.text.encode("utf-8"))
    path = lock_path(settings)
    if str(path) not in unsigned and path.read_bytes() != lock_text(lock.document).encode("ascii"):
        expected, found = "its text byte for byte as tasks/lock.py writes it", "other bytes for the same lock"
        fix = "git checkout of it, or sign it anew"
        raise Refused(str(path), "is signed in a form of its own", expected, found, fix)


def check_fits(path: str, data: bytes) -> None:
    """Raise Refused unless the signature beside `path` is one of these very bytes, in our namespace."""
    command = ["ssh-keygen", "-Y", "check-novalidate", "-n", NAMESPACE, "-s", str(signature_path(Path(path)))]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=60)
    except FileNotFoundError:
        raise Refused("ssh-keygen", "is missing on this machine", next="install OpenSSH's client") from None
    if done.returncode:
        found = "; ".join(done.stderr.decode("utf-8", "replace").strip().splitlines()[:3])
        expected = f"one of these very bytes, in the namespace {NAMESPACE}"
        fix = f"rm {path}.sig && {sign_command(path)}"
        raise Refused(path, "has a signature that does not fit", expected, found, fix)
