"""Fetches models from the Hub: the one program that talks to it. It runs in a venv that has huggingface_hub.

    fetch resolve  --store S --within SEC   (stdin: {"token", "endpoint", "xet", "models": [{"repo", "revision"}]})
    fetch download --store S --within SEC   (stdin: {"token", "endpoint", "xet", "lock": {…}})

The token comes by standard input, and the client gets it call by call. It is never in argv, the environment, a log or a
file. The client checks a download's size alone, and gives up on a reset connection. So hashes, further tries and the
deadline are ours. The answer is one JSON line on standard output.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import logging
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tasks.remote.bastion.download import download
from tasks.remote.bastion.resolve import resolve
from tasks.remote.common.files import as_refused, hold_lock, print_answer
from tasks.remote.common.hub import Hub
from tasks.shared.errors import Refused
from tasks.shared.lock import parse_lock

# The system's certificates. A company's own authority is among them; the client's own list has none.
SYSTEM_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
PR_SET_PDEATHSIG = 1  # linux/prctl.h: the signal that this process gets when its parent dies


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line. verb: "resolve" or "download". within: seconds for all of it."""

    verb: str
    store: str
    within: int


def main(argv: Sequence[str]) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(prog="fetch")
    parser.add_argument("verb", choices=["resolve", "download"])
    parser.add_argument("--store", required=True)
    parser.add_argument("--within", type=int, default=14400)
    options = Options(**vars(parser.parse_args(argv)))
    os.umask(0o022)
    return print_answer(lambda: fetch(options, json.load(sys.stdin)), options.store)


def fetch(options: Options, request: Mapping[str, Any]) -> dict[str, Any]:
    """Do what `request` (standard input) asks for, alone in this store and within the deadline; return the answer."""
    started = time.monotonic()
    unfinished = os.path.join(options.store, "fetch")
    os.makedirs(unfinished, exist_ok=True)
    with hold_lock(os.path.join(options.store, ".fetch.lock"), "is being fetched into"):
        # The client names an unfinished file by its process, and resumes none of another process.
        for entry in os.scandir(unfinished):
            shutil.rmtree(entry.path)
        set_environment(options.store, str(request["endpoint"]), with_xet=bool(request.get("xet", True)))
        answer = run_within(options.within, lambda: work(options, request))
    return {**answer, "seconds": round(time.monotonic() - started, 2)}


def work(options: Options, request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of the verb: a Resolved, or a Downloaded."""
    hub = Hub(endpoint=request["endpoint"], token=request.get("token"))
    if options.verb == "resolve":
        asked = {model["repo"]: model["revision"] for model in request["models"]}
        return dataclasses.asdict(resolve(options.store, hub, asked))
    lock = parse_lock(json.dumps(request["lock"]), "the lock from the controller")
    return dataclasses.asdict(download(options.store, hub, lock))


def set_environment(store: str, endpoint: str, with_xet: bool) -> None:
    """Set what the client reads when it is imported: no token of this machine's, no shared blobs, no telemetry."""
    os.environ.update(
        HF_HOME=os.path.join(store, "fetch", "home"),
        HF_ENDPOINT=endpoint,
        HF_HUB_DISABLE_IMPLICIT_TOKEN="1",  # noqa: S106
        HF_HUB_DISABLE_SHARED_BLOBS="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_UPDATE_CHECK="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        HF_HUB_DISABLE_XET="0" if with_xet else "1",
        HF_HUB_DOWNLOAD_TIMEOUT="30",
        HF_HUB_ETAG_TIMEOUT="30",
    )
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        os.environ.pop(name, None)
    if "SSL_CERT_FILE" not in os.environ and os.path.exists(SYSTEM_CERTIFICATES):
        os.environ["SSL_CERT_FILE"] = SYSTEM_CERTIFICATES
    logging.disable(logging.CRITICAL)  # the client's hints name its own way to log in, which stores the token


def run_within(deadline: int, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The answer of `work()`, run in a process of its own. That process is killed after `deadline` seconds.

    Nothing else ends a download that stalls.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        answer_into(writing, work)
    os.close(writing)
    text, end = b"", time.monotonic() + deadline
    while True:
        left = end - time.monotonic()
        if left <= 0 or not select.select([reading], [], [], left)[0]:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            fix = "again: what is whole is kept; fetch_deadline"
            return refusal(Refused("fetch", "did not finish in time", f"{deadline} s", next=fix))
        chunk = os.read(reading, 65536)
        if not chunk:
            break
        text += chunk
    os.waitpid(child, 0)
    answer: dict[str, Any] = json.loads(text) if text else refusal(Refused("fetch", "ended without an answer"))
    return answer


def answer_into(writing: int, work: Callable[[], Mapping[str, Any]]) -> None:
    """In the child: run `work`, write its answer or its refusal to the pipe, and end the process."""
    os.setsid()
    # The parent enforces the deadline, and may be killed itself. Then this process must not go on and hold the lock.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        answer = {"ok": True, **work()}
    except Exception as error:
        answer = refusal(as_refused(error, "fetch"))
    with open(writing, "w", encoding="ascii") as pipe:
        json.dump(answer, pipe, ensure_ascii=True, sort_keys=True)
    os._exit(0)


def refusal(reason: Refused) -> dict[str, Any]:
    """The answer that says no."""
    return {"ok": False, "error": reason.error}
