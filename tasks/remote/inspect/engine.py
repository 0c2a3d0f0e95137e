"""The Docker Engine: where it keeps its data, and what it has."""

from __future__ import annotations

from tasks.remote.inspect.machine import filesystem
from tasks.remote.inspect.reading import parse_object, run
from tasks.shared.facts import Docker


def docker() -> Docker | None:
    """The Docker Engine of this host, or None where none answers."""
    info = parse_object(run("docker", "info", "--format", "{{json .}}"))
    if not info or not info.get("ServerVersion"):  # without an engine, the client still prints what it knows of itself
        return None
    # `docker info` knows the version of Compose; `docker compose version` would start two more programs.
    plugins = (info.get("ClientInfo") or {}).get("Plugins") or []
    return Docker(
        root=filesystem(info["DockerRootDir"]),
        runtimes=sorted(info.get("Runtimes") or {}),
        compose=next((plugin.get("Version") for plugin in plugins if plugin.get("Name") == "compose"), None),
        images=images(),
        volumes=sorted((run("docker", "volume", "ls", "-q") or "").split()),
    )


def images() -> dict[str, str]:
    """{name:tag: id}. The id is the digest of the config, or with containerd's image store that of the manifest."""
    lines = run("docker", "image", "ls", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}") or ""
    rows = [line.split() for line in lines.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 2}
