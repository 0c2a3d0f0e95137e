"""What uses files of a store on this machine: containers' mounts, processes' open and mapped files, mount namespaces."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from tasks.remote.common.docker import docker_output, is_installed


@dataclass(frozen=True)
class Use:
    """A path that something uses, and how: "mounted" or "open"."""

    path: str
    how: str


@dataclass(frozen=True)
class ContainerUse:
    """What a container, running or not, keeps in use: the sources of its mounts, its image's name, its image's id."""

    mounts: tuple[str, ...]
    image: str
    image_id: str


def containers() -> list[ContainerUse]:
    """Every container of this machine; [] where it has no engine. Raise Refused where the engine does not answer."""
    if not is_installed():
        return []
    ids = docker_output("ps", "-aq", "--no-trunc").split()
    found = json.loads(docker_output("inspect", *ids)) if ids else []
    return [
        ContainerUse(tuple(m.get("Source", "") for m in c["Mounts"]), c["Config"]["Image"], c["Image"]) for c in found
    ]


def open_paths(root: str) -> set[str]:
    """The paths below `root` that a process has open or mapped, or has as its working or root directory."""
    found: set[str] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root"]
        try:
            links += [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
            with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
                found.update(line.split(maxsplit=5)[5].strip() for line in file if root in line)
        except (FileNotFoundError, ProcessLookupError):
            continue  # the process has ended
        for link in links:
            try:
                found.add(os.readlink(link))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return {path.removesuffix(" (deleted)") for path in found if path.startswith(root)}


def mounted_paths(store: str) -> set[str]:
    """The paths of the store's filesystem that a process has mounted, by the names that they have now.

    Everywhere else, a container's mount of a directory that was renamed keeps its old name.
    """
    here = [line.split() for line in lines("/proc/self/mountinfo")]
    fits = [words for words in here if (store + "/").startswith(words[4].rstrip("/") + "/")]
    device, top, point = max(((words[2], words[3], words[4]) for words in fits), key=lambda found: len(found[2]))
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for words in (line.split() for line in lines(f"/proc/{pid}/mountinfo")):
            if words[2] == device and (words[3] + "/").startswith(top.rstrip("/") + "/"):
                found.add(os.path.normpath(os.path.join(point, os.path.relpath(words[3], top))))
    return found


def lines(path: str) -> list[str]:
    """The lines of a file in /proc; [] where its process has ended."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []
