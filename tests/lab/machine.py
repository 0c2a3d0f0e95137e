"""The outer machine: what must be installed on it, and a Docker Engine that answers. Debian 12 or 13, or Ubuntu; root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.lab.images import ROOT, answers, hashed, run

# program -> Debian package
NEEDS = {
    "docker": "docker.io",
    "dockerd": "docker.io",
    "iptables": "iptables",
    "debootstrap": "debootstrap",
    "rsync": "rsync",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "openssl": "openssl",
    "ip": "iproute2",
    "unshare": "util-linux",
}


def install() -> None:
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = sorted({package for program, package in NEEDS.items() if not shutil.which(program)})
    if not answers(sys.executable, "-c", "import ensurepip, venv"):
        missing.append("python3-venv")
    if not missing:
        return
    if os.geteuid():
        raise SystemExit(f"lab: missing {', '.join(missing)}; run as root, or install them first")
    print(f"lab: apt-get install {' '.join(missing)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "update", env=environment)
    if "docker.io" in missing and answers("apt-cache", "show", "docker-cli"):
        missing.append("docker-cli")  # a package of its own since Debian 13
    # Debian starts an sshd on install where systemd runs; the lab needs the program alone.
    run("apt-get", "install", "-y", "--no-install-recommends", "ca-certificates", *missing, env=environment)


def environment(*requirements: Path) -> str:
    """The Python of `.venv`, with these requirements installed; made again when they change."""
    venv = ROOT / ".venv"
    mark = hashed(*requirements, sys.version)
    if not (venv / mark).exists():
        print(f"lab: packages into {venv.name}", flush=True)
        run(sys.executable, "-m", "venv", "--clear", venv)
        lists = [word for path in requirements for word in ("-r", path)]
        run(venv / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *lists)
        (venv / mark).touch()
    return str(venv / "bin/python")


def engine(state: Path) -> None:
    """A Docker Engine on this machine: systemd's where there is one, else started by hand; waits until it answers."""
    if answers("docker", "info"):
        return
    print("lab: starting Docker Engine", flush=True)
    if Path("/run/systemd/system").exists():
        run("systemctl", "start", "docker")
    else:
        dockerd(state / "dockerd.log")
    wait("Docker Engine to answer", lambda: answers("docker", "info"), 60)


def dockerd(log: Path, *options: object) -> subprocess.Popen:
    """An engine by hand, which outlives who started it."""
    with open(log, "ab") as file:
        words = ["dockerd", *map(str, options)]
        return subprocess.Popen(words, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True)


def wait(what: str, ready, seconds: int) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit(f"lab: waited {seconds} s for {what}")
        time.sleep(0.25)
