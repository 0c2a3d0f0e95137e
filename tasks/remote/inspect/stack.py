"""The operator's Compose stack: its files, the overrides beside them, its services and their networks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tasks.remote.inspect.reading import parse_object, read, run
from tasks.shared.facts import Stack
from tasks.shared.stack import STACK_FILES

# Docker's own networks. A container has no name on them.
NAMELESS = ("bridge", "host", "none")


def stack(directory: str, service: str | None, project: str | None) -> Stack:
    """The stack in `directory`. `service`: the one whose networks are asked for. `project`: its name, where the operator sets one."""
    files = [name for name in STACK_FILES if os.path.isfile(os.path.join(directory, name))]
    if not files:
        return Stack(files=[], override=None, overrides={}, project=project, services=[], networks={})
    stem, suffix = os.path.splitext(files[0])
    names = [f"{stem}.override{suffix}" for stem in ("compose", "docker-compose") for suffix in (".yml", ".yaml")]
    there = [name for name in names if os.path.exists(os.path.join(directory, name))]
    config = compose_config(os.path.join(directory, files[0]), project)
    return Stack(
        files=files,
        override=f"{stem}.override{suffix}",
        overrides={name: read(os.path.join(directory, name)) for name in there},
        project=config.get("name") if config else project,
        services=sorted(config.get("services") or {}) if config else None,
        networks=networks(config, service) if config and service else {},
    )


def compose_config(path: str, project: str | None) -> dict[str, Any] | None:
    """The stack as Compose reads it, or None where Compose refuses it."""
    named = ["-p", project] if project else []
    return parse_object(run("docker", "compose", *named, "-f", path, "config", "--format", "json"))


def networks(config: Mapping[str, Any], service: str) -> dict[str, list[str]]:
    """{network: [names of `service` on it]} as Compose would make it.

    {} where the service has the host's network or another container's.
    """
    asked = ((config.get("services") or {}).get(service) or {}).get("networks") or {}
    found = {}
    for key, about in asked.items():
        network = ((config.get("networks") or {}).get(key) or {}).get("name") or key
        names = {service, *((about or {}).get("aliases") or [])}
        found[network] = [] if network in NAMELESS else sorted(names)
    return found
