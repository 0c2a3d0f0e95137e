"""Brings a release's image into the engine by `docker load`, and proves its id."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable
from typing import IO, Any

from tasks.remote.common.docker import docker, image_id
from tasks.remote.host import bake
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock


def load(store: str, lock: Lock, deadline: float) -> dict[str, Any]:
    """Load the release's image under its own tag, unless the engine has it. Raise Refused where it is another image.

    Docker shows the config's digest as an image's id with its classic store, and the manifest's with containerd's. The lock,
    or this machine's record of baking, has both, and either proves the image. Return {"loaded": bool, "id", "seconds"}.
    """
    tag, began = lock.tag, time.monotonic()
    ids = lock.image_ids(bake.recorded(store, lock))
    found = image_id(tag)
    if found in ids:
        return {"loaded": False, "id": found, "seconds": 0.0}
    if lock.delivery == "bake":
        baked = bake.bake(store, lock)
        bake.keep_record(store, lock, baked)
        ids = lock.image_ids(baked.record())
        docker_load(tag, deadline, lambda out: bake.stream(out, store, lock, baked))
    else:
        folder = os.path.join(store, "releases", lock.id, "image")
        docker_load(tag, deadline, lambda out: write_tar(out, folder))
    found = image_id(tag)
    if found not in ids:
        docker("image", "rm", tag)
        raise Refused(tag, "is another image than the lock says", " or ".join(ids), str(found), "tasks/lock.py")
    return {"loaded": True, "id": found, "seconds": round(time.monotonic() - began, 2)}


def write_tar(out: IO[bytes], folder: str) -> None:
    """Write a directory as a tar archive. A failure is not noted here: `docker load` refuses an archive that is cut short."""
    subprocess.run(["tar", "-C", folder, "-cf", "-", "."], stdout=out)


def docker_load(tag: str, deadline: float, feed: Callable[[IO[bytes]], None]) -> None:
    """Run `docker load` of what `feed` writes into its standard input. Raise Refused where it fails, or after the deadline.

    deadline: seconds. `tag` is for the message alone.
    """
    began = time.monotonic()
    with subprocess.Popen(
        ["docker", "load", "--quiet"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as loader:
        watch = threading.Timer(deadline, loader.kill)
        watch.start()
        try:
            if loader.stdin is not None:  # it is a pipe
                with contextlib.suppress(BrokenPipeError):  # the loader has ended: its exit code and errors say why
                    feed(loader.stdin)
            _, errors = loader.communicate()
        finally:
            watch.cancel()
            loader.kill()
    if loader.returncode:
        is_late = time.monotonic() - began >= deadline
        what = f"docker load took longer than {deadline} s" if is_late else "docker load failed"
        found = errors.decode("utf-8", "replace").strip()[-300:]
        raise Refused(tag, what, "success", found, "look at Docker's disk and log")
