"""The machine itself: its filesystems, its GPUs, and who may change the list of allowed signers."""

from __future__ import annotations

import os

from tasks.remote.inspect.reading import run
from tasks.shared.facts import Filesystem, Gpu


def filesystem(path: str) -> Filesystem:
    """The filesystem on which `path` lies, or would lie: that of the nearest directory at or above it."""
    nearest = path
    while nearest and not os.path.isdir(nearest):
        nearest = os.path.dirname(nearest)
    nearest = nearest or "/"
    mount = os.path.realpath(nearest)
    while not os.path.ismount(mount):
        mount = os.path.dirname(mount)
    stat = os.statvfs(nearest)
    return Filesystem(
        path=path,
        exists=os.path.isdir(path),
        free_bytes=stat.f_bavail * stat.f_frsize,
        free_inodes=stat.f_favail if stat.f_files else None,
        read_only=bool(stat.f_flag & os.ST_RDONLY),
        device=os.stat(nearest).st_dev,
        mount=mount,
    )


def gpus() -> list[Gpu] | None:
    """The GPUs that nvidia-smi shows, or None where no nvidia-smi answers."""
    text = run("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader,nounits")
    if text is None:
        return None
    rows = [line.split(",") for line in text.splitlines() if line.count(",") == 1]
    return [Gpu(name=name.strip(), driver=driver.strip()) for name, driver in rows]


def signers(path: str) -> list[tuple[str, int, int]] | None:
    """(path, owner's uid, mode) of the list of allowed signers, and of each directory above it; None without that file.

    Where they cannot be read, the owner is -1: nobody may rely on such a list.
    """
    found: list[tuple[str, int, int]] = []
    here = path
    while not found or found[-1][0] != "/":
        try:
            info = os.lstat(here)
        except FileNotFoundError:
            return None
        except OSError:
            return [(here, -1, 0)]
        found.append((here, info.st_uid, info.st_mode))
        here = os.path.dirname(here)
    return found
