"""The service's container: its state, its process, its mounts, and what it has lost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.remote.inspect.reading import parse, read, run
from tasks.shared.facts import Container, Stack
from tasks.shared.stack import RELEASE_LABEL


def container(stack: Stack, service: str, store: str) -> Container | None:
    """The container of `service` in this stack; None without one. `store`: the path of the store."""
    found = inspected(stack.project, service) if stack.project else None
    if not found:
        return None
    state = found["State"]
    return Container(
        id=found["Id"],
        image=found["Image"],
        state=state["Status"],
        health=(state.get("Health") or {}).get("Status"),
        restarts=found["RestartCount"],
        started=state["StartedAt"],
        release=found["Config"]["Labels"].get(RELEASE_LABEL),
        environment=environment(state["Pid"]),
        mounts={mount["Destination"]: mount.get("Source") for mount in found["Mounts"]},
        detached=detached(found, store, stack.networks) if state["Status"] == "running" else [],
    )


def inspected(project: str, service: str) -> dict[str, Any] | None:
    """What `docker inspect` says of the service's first container. Containers of `compose run` don't count."""
    labels = [f"label=com.docker.compose.project={project}", f"label=com.docker.compose.service={service}"]
    ids = run("docker", "ps", "-aq", "--no-trunc", "--filter", labels[0], "--filter", labels[1])
    found: list[dict[str, Any]] = (parse(run("docker", "inspect", *ids.split())) if ids else None) or []
    kept = [c for c in found if c["Config"]["Labels"].get("com.docker.compose.oneoff") != "True"]
    return kept[0] if kept else None


def environment(pid: int) -> dict[str, str] | None:
    """The environment of the service's process; None where it does not run or may not be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            pairs = [entry.partition(b"=") for entry in file.read().split(b"\0")]
    except OSError:
        return None
    return {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, _, value in pairs if key}


def detached(found: Mapping[str, Any], store: str, networks: Mapping[str, Sequence[str]]) -> list[str]:
    """What a running container should have and has lost, as sentences that follow "the service".

    `found`: what `docker inspect` says. `networks`: {network: [names on it]} as the stack asks for them.
    """
    mounts = mount_roots(found["State"]["Pid"])
    return [
        *lost_networks(found["NetworkSettings"]["Networks"] or {}, networks),
        *(
            f"has mounted what is no longer {mount['Source']}"
            for mount in found["Mounts"]
            if is_stale(mount.get("Source") or "", mounts.get(mount["Destination"]), store)
        ),
    ]


def lost_networks(there: Mapping[str, Any], networks: Mapping[str, Sequence[str]]) -> list[str]:
    """The networks, and the names on them, that the container should have and has not."""
    found = []
    for network, names in networks.items():
        missing = sorted(set(names) - set((there.get(network) or {}).get("Aliases") or []))
        if network not in there:
            found.append(f"is not on its network {network}")
        elif missing:
            found.append(f"is not called {', '.join(missing)} on its network {network}")
    return found


def is_stale(source: str, root: str | None, store: str) -> bool:
    """Whether a mounted release is no longer the directory `source`. `root`: what is mounted, None where unknown.

    A directory that was renamed since has another name in `root`. One that was removed has "//deleted" behind it.
    """
    if root is None or not source.startswith(os.path.join(store, "releases", "")):
        return False
    return not root.endswith("/releases/" + os.path.basename(source))


def mount_roots(pid: int) -> dict[str, str]:
    """{mount point: the mounted directory, as a path on its own filesystem} of a process; {} where it has ended."""
    lines = [line.split() for line in (read(f"/proc/{pid}/mountinfo") or "").splitlines()]
    return {line[4]: line[3] for line in lines}
