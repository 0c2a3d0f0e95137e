"""The operator's service on a host: Compose's files and commands, the container, its health, what runs inside it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time

from tasks.remote.common.files import HELD_LOCKS, read_text
from tasks.remote.host import bake
from tasks.remote.host.records import Records
from tasks.shared.errors import Refused
from tasks.shared.stack import LOADER, STACK_FILES


class Service:
    """One service of one stack; the files are those that a person's `docker compose up -d` in that directory takes."""

    def __init__(self, stack, override, project, service):
        self.stack, self.project, self.name = stack, project, service
        self.override = os.path.join(stack, override)

    def compose(self, *words, timeout=120):
        base = ["compose", "-p", self.project, "--project-directory", self.stack]
        return docker(*base, *self.files(), *words, timeout=timeout)

    def files(self, override=None):
        name = next((n for n in STACK_FILES if os.path.isfile(os.path.join(self.stack, n))), None)
        if name is None:
            raise Refused(self.stack, "has no compose file", " or ".join(STACK_FILES), "none", "is its disk mounted?")
        override = override or self.override
        return ["-f", os.path.join(self.stack, name), *(["-f", override] if os.path.exists(override) else [])]

    def containers(self, name=None):
        """The ids of the service's containers, running or not; a switch that was cut off can leave two."""
        compose = "label=com.docker.compose"
        service = name or self.name
        labels = (f"{compose}.project={self.project}", f"{compose}.service={service}", f"{compose}.oneoff=False")
        found = docker("ps", "-aq", "--no-trunc", *(word for label in labels for word in ("--filter", label)))
        if found.returncode:
            said = found.stderr.strip()[-200:]
            raise Refused("docker", "does not answer", found=said, next="systemctl status docker")
        return found.stdout.split()

    def clear(self, name=None):
        """Remove what is there of the service's containers, under whatever name Compose left them."""
        ids = self.containers(name)
        if ids:
            docker("rm", "--force", *ids)

    def container(self):
        """The service's container as `docker inspect` shows it, or None."""
        ids = self.containers()
        if not ids:
            return None
        shown = docker("inspect", ids[0])
        if shown.returncode and "no such" in shown.stderr.lower():
            return None  # it went in between
        try:
            return json.loads(shown.stdout)[0]
        except (ValueError, IndexError):
            said = shown.stderr.strip()[-200:]
            raise Refused("docker inspect", "does not answer", found=said, next="systemctl status docker") from None

    def logs(self, size=3000):
        """The last whole lines of the service, `size` characters at most, without what a terminal would obey."""
        text = self.compose("logs", "--no-color", "--no-log-prefix", "--tail", "40", self.name).stdout
        plain = "".join(c for c in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text) if c == "\n" or c.isprintable())
        return ending(plain.strip(), size)

    def done(self, *words, timeout=120):
        """A Compose command that must succeed."""
        done = self.compose(*words, timeout=timeout)
        if done.returncode:
            said, mend = done.stderr.strip()[-500:], "look at the stack's file"
            if ghost(said):
                mend = "if nothing else has that port, Docker Engine lost track of it: systemctl restart docker"
            raise Refused(f"docker compose {words[0]}", "failed", "success", said, mend)

    def up(self, timeout, recreate=False):
        more = ["--force-recreate"] if recreate else []
        self.done("up", "-d", "--no-build", "--pull", "never", *more, self.name, timeout=timeout)
        self.without_loader()

    def without_loader(self):
        """Remove what a release that loaded itself has left, where the override has none now."""
        if f"  {LOADER}:\n" not in (read_text(self.override) or ""):
            self.clear(LOADER)

    def wait_healthy(self, deadline, was=None):
        """The container once it is healthy (or runs, where it has no health check); Refused on exit, restart or deadline.

        `was`: the container before; one that is kept may have restarted long ago.
        """
        started, until = time.monotonic(), time.monotonic() + deadline
        while True:
            found = self.container()
            state = (found or {}).get("State", {})
            health = (state.get("Health") or {}).get("Status")
            settled = health == "healthy" or (health is None and time.monotonic() - started > 5)
            if found and state["Status"] == "running" and settled:
                return found
            kept = was is not None and found is not None and was["Id"] == found["Id"]
            restarts = (found or {}).get("RestartCount", 0) - (was["RestartCount"] if kept else 0)
            if found and (restarts > 0 or state["Status"] in ("exited", "dead")):
                what = f"exited with code {state['ExitCode']}, {restarts} restarts"
                raise Refused(self.name, what, "a healthy container", self.logs(600))
            if health == "unhealthy":
                code, said = last_check(state)
                found = f"its health check ends with {code}: {said or self.logs(300)}"
                raise Refused(self.name, "is unhealthy", "healthy", found)
            if time.monotonic() > until:
                now = health or state.get("Status") or "no container"
                raise Refused(
                    self.name, f"is not healthy after {deadline:.0f} s", "healthy", f"{now}: {self.logs(400)}"
                )
            time.sleep(0.3)

    def soak(self, found, seconds):
        """Nothing may happen for `seconds`, which may be none: the same container, running, never restarted, not unhealthy,
        on its networks."""
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            time.sleep(min(1, max(0, left)))
            now = self.container()
            state = (now or {}).get("State", {})
            health = (state.get("Health") or {}).get("Status")
            started = found["State"]["StartedAt"]
            same = now and now["Id"] == found["Id"] and state["StartedAt"] == started
            if not same or state["Status"] != "running" or health == "unhealthy":
                since = f"no restart for {seconds:.0f} s" if seconds else f"the one that started {started[:19]}"
                raise Refused(self.name, "did not stay up", since, f"{described(now)}: {self.logs(400)}".rstrip(": "))
            if lost := networks(found) - networks(now):
                raise Refused(
                    self.name,
                    "was cut off",
                    f"its networks {', '.join(sorted(networks(found)))}",
                    f"without {', '.join(sorted(lost))}",
                )
            if left <= 1:
                return

    def check_inside(self, found, store, release_id, expect_env):
        """What runs is what was proven: image, mount and environment of the very process."""
        lock = Records(store).lock(release_id)
        wanted = lock.image_ids(bake.recorded(store, lock))
        if found["Image"] not in wanted:
            raise Refused(self.name, "runs another image", " or ".join(wanted), found["Image"])
        mounts = {mount["Destination"]: mount.get("Source") for mount in found["Mounts"]}
        if not lock.is_mounted(store, mounts, expect_env.get("HF_HOME", "")):
            what = "does not have the release where its delivery puts it"
            raise Refused(self.name, what, f"{lock.delivery} of {lock.short}", str(mounts))
        with open(f"/proc/{found['State']['Pid']}/environ", "rb") as file:
            pairs = [entry.partition(b"=") for entry in file.read().split(b"\0")]
        inside = {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, _, value in pairs}
        wrong = {key: inside.get(key) for key, value in expect_env.items() if inside.get(key) != value}
        if wrong:
            expected = str({key: expect_env[key] for key in wrong})
            raise Refused(self.name, "has another environment in its process", expected, str(wrong))


def described(container):
    """A container (or None) in a few words."""
    if container is None:
        return "no container"
    state, count = container["State"], container.get("RestartCount", 0)
    health = (state.get("Health") or {}).get("Status") or "no health check"
    return f"one that started {state['StartedAt'][:19]}, {state['Status']}, {health}, {count} restarts by itself"


def networks(container):
    """The names of the networks that a container is on."""
    return set((container.get("NetworkSettings") or {}).get("Networks") or {})


def docker(*words, timeout=120):
    """A Docker command; it and its plugins end with us, or with their time, or else keep our locks held."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    more = {"text": True, "errors": "replace", "start_new_session": True, "pass_fds": HELD_LOCKS}
    with subprocess.Popen(["docker", *words], **pipes, **more) as process:
        try:
            said, complained = process.communicate(timeout=timeout)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return subprocess.CompletedProcess(error.cmd, 124, "", f"no answer within {timeout} s")
    return subprocess.CompletedProcess(process.args, process.returncode, said, complained)


def ghost(said):
    """Whether the engine holds a port for a container that is no more: its own memory after a power cut.

    moby/moby#20486 and libnetwork#2448: only a restart of the engine gives such a port back.
    """
    return "port is already allocated" in said


def restart_engine():
    """The engine anew, where that disturbs nobody: -> whether it was done. Other containers are somebody's.

    No container runs, or the engine's live-restore lets them run on without it.
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


def ending(text, size):
    """The last whole lines of a text, `size` characters at most; of one line that is longer, its end."""
    return text if len(text) <= size else text[-size:].partition("\n")[2] or text[-size:]


def last_check(state):
    """(exit code, what it said) of the last health check."""
    last = ((state.get("Health") or {}).get("Log") or [{}])[-1]
    return last.get("ExitCode"), ending((last.get("Output") or "").strip(), 300)
