"""Docker's command line: commands that are bounded in time and end with this process, and a few questions to the engine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence

from tasks.remote.common.files import HELD_LOCKS
from tasks.shared.errors import Refused

WITHIN = 120.0  # seconds for a command that moves no data
TIMED_OUT = 124  # the exit code of a command that took too long, as of coreutils' timeout


def run_docker(
    *words: str, timeout: float, env: Mapping[str, str] | None = None, locks: Sequence[int] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a Docker command. After `timeout` seconds kill it with its plugins, and raise subprocess.TimeoutExpired.

    An exception in this process kills them too. `locks`: descriptors of lock files. Where this process is killed, the
    command lives on and holds them until it ends. `env`: the command's whole environment.
    """
    with subprocess.Popen(
        ["docker", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # a group of its own, so that the plugins can be killed with it
        pass_fds=locks,
        env=env,
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def docker(*words: str, timeout: float = WITHIN) -> subprocess.CompletedProcess[str]:
    """Run a Docker command that keeps the locks of this process. One that takes too long ends with the code TIMED_OUT."""
    try:
        return run_docker(*words, timeout=timeout, locks=HELD_LOCKS)
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(error.cmd, TIMED_OUT, "", f"no answer within {timeout} s")


def docker_output(*words: str) -> str:
    """The output of a Docker command. Raise Refused where it fails or takes too long."""
    done = docker(*words)
    if done.returncode:
        found = done.stderr.strip()[-200:]
        raise Refused(f"docker {' '.join(words[:2])}", "failed", "an answer", found, "systemctl status docker")
    return done.stdout


def is_installed() -> bool:
    """Whether this machine has Docker's command line."""
    return shutil.which("docker") is not None


def engine_answers() -> bool:
    """Whether the engine is up. Not by `docker info`, which up to version 28 ends with code 0 without an engine."""
    return docker("version", "--format", "{{.Server.Version}}").returncode == 0


def image_id(name: str) -> str | None:
    """The id that the engine shows for an image's name, or None where it has no such image."""
    done = docker("image", "inspect", "-f", "{{.Id}}", name)
    return done.stdout.strip() if done.returncode == 0 else None
