"""Runs a Compose service of ours once, as a container of its own, bounded in time."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.remote.common.docker import docker, run_docker
from tasks.shared.answers import last_json_object
from tasks.shared.errors import Refused


@dataclass(frozen=True)
class OneOff:
    """Where the service is: Compose's project, its directory and files; for which release; seconds that it may take."""

    release: str
    project: str
    project_directory: str
    files: Sequence[str]
    within: float


def run_once(
    where: OneOff,
    service: str,
    what: str,
    fix: str,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], int]:
    """Run the service. Return its JSON and its exit code. Raise Refused if it prints no JSON, or takes too long.

    what, fix: what it is, and what to do when it is late, for the message. options: of `docker compose run`. env: the
    variables that the Compose file asks for.
    """
    name = f"hf-{service.removeprefix('hf-')}-{where.release[:12]}-{os.getpid()}"
    words = ["compose", "-p", where.project, "--project-directory", where.project_directory]
    for path in where.files:
        words += ["-f", path]
    words += ["--profile", "smoke", "run", "--rm", "-T", "--no-deps", "--name", name, *options, service]
    try:
        done = run_docker(*words, timeout=where.within, env={**os.environ, **(env or {})})
    except subprocess.TimeoutExpired as late:
        docker("rm", "-f", name)
        found = (late.stderr or b"").decode("utf-8", "replace")[-300:]  # bytes, though the process was asked for text
        raise Refused(what, f"took longer than {where.within} s", found=found, next=fix) from None
    finally:
        remove_networks()
    answer = last_json_object(done.stdout.splitlines(), "ok")
    if answer is None:
        is_killed = done.returncode == 137
        how = "was killed: out of memory?" if is_killed else f"ended with code {done.returncode} and no result"
        found = (done.stderr or done.stdout).strip()[-600:]
        given = "".join(f"{key}={value} " for key, value in (env or {}).items())
        raise Refused(what, how, "one JSON line", found, f"{given}docker {' '.join(words)}")
    return answer, done.returncode


def remove_networks() -> None:
    """Remove the networks that Compose makes for such a run, which uses none. An engine has addresses for only about 30."""
    ours = docker("network", "ls", "-q", "--filter", "name=^hf-smoke-").stdout.split()
    if ours:
        docker("network", "rm", *ours)
