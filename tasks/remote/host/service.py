"""The operator's service on a host: Compose's files and commands, the container, its health, and what runs inside it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from tasks.remote.common.docker import docker
from tasks.remote.common.files import read_text
from tasks.remote.host import bake
from tasks.remote.host.container import Container, Identity, describe, ending
from tasks.remote.host.records import Records
from tasks.shared.errors import Refused
from tasks.shared.stack import LOADER, STACK_FILES

NO_HEALTH_CHECK = 5  # seconds that a container without a health check must run to count as healthy


@dataclass(frozen=True)
class Place:
    """Where a service is: the stack's directory, our override's name in it, Compose's project, the service's name."""

    stack: str
    override: str
    project: str
    service: str

    def find(self) -> Service:
        return Service(self.stack, self.override, self.project, self.service)


class Service:
    """One service of one stack. Its files are those that a person's `docker compose up -d` in that directory takes."""

    def __init__(self, stack: str, override: str, project: str, service: str):
        self.stack, self.project, self.name = stack, project, service
        self.override = os.path.join(stack, override)

    # ------------------------------------------------------------------------------------------------- Compose's commands

    def files(self, override: str | None = None) -> list[str]:
        """The options that name the stack's file and our override, or `override` in its place. Raise Refused without a file."""
        name = next((n for n in STACK_FILES if os.path.isfile(os.path.join(self.stack, n))), None)
        if name is None:
            raise Refused(self.stack, "has no compose file", " or ".join(STACK_FILES), "none", "is its disk mounted?")
        override = override or self.override
        return ["-f", os.path.join(self.stack, name), *(["-f", override] if os.path.exists(override) else [])]

    def compose(self, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a Compose command of this stack. A failure is in the exit code."""
        base = ["compose", "-p", self.project, "--project-directory", self.stack]
        return docker(*base, *self.files(), *words, timeout=timeout)

    def must(self, *words: str, timeout: float = 120) -> None:
        """Run a Compose command of this stack. Raise Refused where it fails or takes longer than `timeout` seconds."""
        done = self.compose(*words, timeout=timeout)
        if done.returncode:
            errors, fix = done.stderr.strip()[-500:], "look at the stack's file"
            if is_port_lost(errors):
                fix = "if nothing else has that port, Docker Engine lost track of it: systemctl restart docker"
            raise Refused(f"docker compose {words[0]}", "failed", "success", errors, fix)

    def up(self, timeout: float, recreate: bool = False) -> None:
        """Start the service as its files say, with no pull and no build. `recreate`: with a new container in any case."""
        more = ["--force-recreate"] if recreate else []
        self.must("up", "-d", "--no-build", "--pull", "never", *more, self.name, timeout=timeout)
        self.remove_unused_loader()

    def remove_unused_loader(self) -> None:
        """Remove the container that loaded a release into its volume, where our override has no such service now."""
        if f"  {LOADER}:\n" not in (read_text(self.override) or ""):
            self.clear(LOADER)

    # -------------------------------------------------------------------------------------------------------- its container

    def containers(self, name: str | None = None) -> list[str]:
        """The ids of the service's containers, running or not. A switch that was killed can leave two."""
        compose = "label=com.docker.compose"
        service = name or self.name
        labels = (f"{compose}.project={self.project}", f"{compose}.service={service}", f"{compose}.oneoff=False")
        found = docker("ps", "-aq", "--no-trunc", *(word for label in labels for word in ("--filter", label)))
        if found.returncode:
            errors = found.stderr.strip()[-200:]
            raise Refused("docker", "does not answer", found=errors, next="systemctl status docker")
        return found.stdout.split()

    def clear(self, name: str | None = None) -> None:
        """Remove all containers of the service. After a kill, Compose can leave one under another name."""
        ids = self.containers(name)
        if ids:
            docker("rm", "--force", *ids)

    def container(self) -> Container | None:
        """The service's container, or None. Raise Refused where the engine does not answer."""
        ids = self.containers()
        if not ids:
            return None
        shown = docker("inspect", ids[0])
        if shown.returncode and "no such" in shown.stderr.lower():
            return None  # it was removed since it was listed
        try:
            return Container(json.loads(shown.stdout)[0])
        except (ValueError, IndexError):
            errors = shown.stderr.strip()[-200:]
            raise Refused("docker inspect", "does not answer", found=errors, next="systemctl status docker") from None

    def logs(self, size: int = 3000) -> str:
        """The last whole lines of the service, at most `size` characters, without the characters that steer a terminal."""
        text = self.compose("logs", "--no-color", "--no-log-prefix", "--tail", "40", self.name).stdout
        plain = "".join(c for c in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text) if c == "\n" or c.isprintable())
        return ending(plain.strip(), size)

    # ---------------------------------------------------------------------------------------------------------- its health

    def wait_healthy(self, deadline: float, before: Container | None = None) -> Container:
        """The container, once it is healthy, or runs where it has no health check.

        Raise Refused when it exits, restarts, is unhealthy, or `deadline` seconds have passed. `before`: the container
        that was there before; when Compose keeps it, its earlier restarts do not count.
        """
        began = time.monotonic()
        while True:
            found = self.container()
            took = time.monotonic() - began
            if found and found.is_well and (found.health or took > NO_HEALTH_CHECK):
                return found
            if found:
                self._refuse_failed(found, before)
            if took > deadline:
                now = (found.health or found.status) if found else "no container"
                what = f"is not healthy after {deadline:.0f} s"
                raise Refused(self.name, what, "healthy", f"{now}: {self.logs(400)}")
            time.sleep(0.3)

    def _refuse_failed(self, found: Container, before: Container | None) -> None:
        """Raise Refused where the container can no longer get healthy by itself."""
        is_kept = before is not None and before.id == found.id
        restarts = found.restarts - (before.restarts if before and is_kept else 0)
        if restarts > 0 or found.status in ("exited", "dead"):
            what = f"exited with code {found.state['ExitCode']}, {restarts} restarts"
            raise Refused(self.name, what, "a healthy container", self.logs(600))
        if found.health == "unhealthy":
            code, output = found.last_check()
            why = f"its health check ends with {code}: {output or self.logs(300)}"
            raise Refused(self.name, "is unhealthy", "healthy", why)

    def soak(self, wanted: Identity, seconds: float) -> None:
        """Watch the container for `seconds`, and once at the least.

        Raise Refused unless it stays the same one, running, never restarted, not unhealthy, and on its networks.
        """
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            time.sleep(min(1, max(0, left)))
            now = self.container()
            is_same = now is not None and (now.id, now.started) == (wanted.id, wanted.started)
            if now is None or not is_same or now.status != "running" or now.health == "unhealthy":
                expected = (
                    f"no restart for {seconds:.0f} s" if seconds else f"the one that started {wanted.started[:19]}"
                )
                found = f"{describe(now)}: {self.logs(400)}".rstrip(": ")
                raise Refused(self.name, "did not stay up", expected, found)
            lost = wanted.networks - now.networks
            if lost:
                expected = f"its networks {', '.join(sorted(wanted.networks))}"
                raise Refused(self.name, "was cut off", expected, f"without {', '.join(sorted(lost))}")
            if left <= 1:
                return

    def check_inside(self, found: Container, store: str, release_id: str, expect_env: Mapping[str, str]) -> None:
        """Raise Refused unless the running process has the release's image, its mount and this environment."""
        lock = Records(store).lock(release_id)
        wanted = lock.image_ids(bake.recorded(store, lock))
        if found.image not in wanted:
            raise Refused(self.name, "runs another image", " or ".join(wanted), found.image)
        if not lock.is_mounted(store, found.mounts, expect_env.get("HF_HOME", "")):
            what = "does not have the release where its delivery puts it"
            raise Refused(self.name, what, f"{lock.delivery} of {lock.short}", str(found.mounts))
        with open(f"/proc/{found.pid}/environ", "rb") as file:
            pairs = [entry.partition(b"=") for entry in file.read().split(b"\0")]
        inside = {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, _, value in pairs}
        wrong = {key: inside.get(key) for key, value in expect_env.items() if inside.get(key) != value}
        if wrong:
            expected = str({key: expect_env[key] for key in wrong})
            raise Refused(self.name, "has another environment in its process", expected, str(wrong))


# --------------------------------------------------------------------------------------------- what the engine can get wrong


def is_port_lost(errors: str) -> bool:
    """Whether the engine says that a port is taken. After a power cut it can be taken by a container that is no more.

    moby/moby#20486 and libnetwork#2448: only a restart of the engine frees such a port.
    """
    return "port is already allocated" in errors


def restart_engine() -> bool:
    """Restart the engine, if that stops no container. Return whether it was done.

    It stops none if none runs, or if the engine's live-restore keeps them running.
    """
    running, live = docker("ps", "-q"), docker("info", "-f", "{{.LiveRestoreEnabled}}")
    if running.returncode or (running.stdout.split() and live.stdout.strip() != "true"):
        return False
    init = ["systemctl", "restart", "docker"]
    if not os.path.isdir("/run/systemd/system"):
        init = ["service", "docker", "restart"]
    try:
        return subprocess.run(init, capture_output=True, stdin=subprocess.DEVNULL, timeout=120).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
