"""A container of the service, as `docker inspect` shows it, with names for what a switch asks about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RUNNING = ("running", "restarting")


@dataclass(frozen=True)
class Identity:
    """By what a container is known again: its id, when it started, and the networks that it must be on."""

    id: str
    started: str
    networks: frozenset[str]


@dataclass(frozen=True)
class Container:
    """One container. `shown`: the document of `docker inspect`."""

    shown: Mapping[str, Any]

    @property
    def id(self) -> str:
        return str(self.shown["Id"])

    @property
    def image(self) -> str:
        """The id of its image, as this engine spells it."""
        return str(self.shown["Image"])

    @property
    def state(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.shown["State"]
        return found

    @property
    def status(self) -> str:
        """`running`, `restarting`, `exited`, … as the engine says."""
        return str(self.state["Status"])

    @property
    def started(self) -> str:
        return str(self.state["StartedAt"])

    @property
    def pid(self) -> int:
        return int(self.state["Pid"])

    @property
    def health(self) -> str | None:
        """`healthy`, `unhealthy` or `starting`; None where it has no health check."""
        found: str | None = (self.state.get("Health") or {}).get("Status")
        return found

    @property
    def restarts(self) -> int:
        """How often the engine has restarted it."""
        return int(self.shown.get("RestartCount", 0))

    @property
    def networks(self) -> frozenset[str]:
        return frozenset((self.shown.get("NetworkSettings") or {}).get("Networks") or {})

    @property
    def mounts(self) -> dict[str, str | None]:
        """{path inside: source on the host}."""
        return {mount["Destination"]: mount.get("Source") for mount in self.shown["Mounts"]}

    @property
    def identity(self) -> Identity:
        return Identity(self.id, self.started, self.networks)

    @property
    def is_well(self) -> bool:
        """Whether it runs, and its health check, if it has one, says healthy."""
        return self.status == "running" and self.health in (None, "healthy")

    def last_check(self) -> tuple[int | None, str]:
        """(exit code, output) of the last health check."""
        last = ((self.state.get("Health") or {}).get("Log") or [{}])[-1]
        return last.get("ExitCode"), ending((last.get("Output") or "").strip(), 300)


def describe(container: Container | None) -> str:
    """A container, or that there is none, in a few words."""
    if container is None:
        return "no container"
    health, count = container.health or "no health check", container.restarts
    return f"one that started {container.started[:19]}, {container.status}, {health}, {count} restarts by itself"


def ending(text: str, size: int) -> str:
    """The last whole lines of a text, at most `size` characters. Of one line that is longer, its end."""
    return text if len(text) <= size else text[-size:].partition("\n")[2] or text[-size:]
