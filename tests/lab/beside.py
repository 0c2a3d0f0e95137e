"""A second lab beside the first, on one machine: the same names and addresses, in a network namespace and an engine of its own.

    unshare --net python3 -m tests.lab.beside COMMAND…      runs COMMAND in a copy of this tree, with that lab's engine

A lab waits for the most part; two of them use the cores that there are. Images come from this machine's own engine, and
stay as a cache.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.lab import images, lab, machine
from tests.lab.images import ROOT, answers, run

PLACE = lab.BESIDE
SOCKET, PID, TREE = f"unix://{PLACE}/engine.sock", PLACE / "engine.pid", PLACE / "tree"


def copy() -> None:
    """This tree as it is, changes that are not committed included; keys, locks and reports are its own."""
    shutil.rmtree(TREE, ignore_errors=True)
    run("git", "clone", "-q", "--no-hardlinks", ROOT, TREE)
    for name in run("git", "-C", ROOT, "ls-files", "-z", "-m", "-o", "--exclude-standard").split("\0"):
        source, target = ROOT / name, TREE / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        elif name:
            target.unlink(missing_ok=True)


def alive(pid: str) -> bool:
    comm = Path(f"/proc/{pid}/comm")
    return comm.exists() and comm.read_text().strip() == "dockerd"


def engine() -> subprocess.Popen:
    """A Docker Engine in this process' network, at SOCKET."""
    run("ip", "link", "set", "lo", "up")
    folders = ["--data-root", PLACE / "engine", "--exec-root", "/run/lab-beside", "--pidfile", PID]
    # An engine of a run that was killed is in a network that nobody reaches.
    if PID.exists() and alive(pid := PID.read_text().strip()):
        os.kill(int(pid), signal.SIGTERM)
        machine.wait("the second Docker Engine of an earlier run to end", lambda: not alive(pid), 60)
    PID.unlink(missing_ok=True)
    started = machine.dockerd(PLACE / "engine.log", "-H", SOCKET, *folders)
    machine.wait("the second Docker Engine to answer", lambda: answers("docker", "-H", SOCKET, "info"), 60)
    return started


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the second engine ends with what it was for
    PLACE.mkdir(exist_ok=True)
    copy()
    started = engine()
    try:
        for image in (images.BASE, images.HOST, images.BACKEND, images.LIGHT):
            lab.load(image, "docker", "-H", SOCKET)
        os.environ["DOCKER_HOST"] = SOCKET
        lab.down()
        try:
            return subprocess.run(sys.argv[1:], cwd=TREE).returncode
        finally:
            lab.down()
    finally:
        started.terminate()
        started.wait()


if __name__ == "__main__":
    sys.exit(main())
