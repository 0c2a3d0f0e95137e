"""Pushes blobs from the bastion's store to one host's incoming/, by rsync over ssh: the one transport of bytes.

    push key    --store S                   make the push key once; print its public half
    push source --to ADDRESS                print the address that the bastion has towards a host
    push idle   --store S --host NAME       wait until no earlier push to this host runs any more
    push send   --store S --host NAME --to U@ADDRESS --port P --alias A [--limit KIB] --within SEC
                (stdin: {"blobs": {sha256: size}, "known_hosts": text})
    push status --store S                   print how far each running push is, for the live display

`send` retries after network failures, resumes in mid-file, and reports what crossed the wire. One JSON line each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from tasks.remote.bastion.rsync import Attempt, Paths, Target, rsync
from tasks.remote.common.blobs import held
from tasks.remote.common.files import hold_lock, is_locked, print_answer, read_record
from tasks.shared.blobs import missing_blobs
from tasks.shared.errors import Refused

# rsync exit codes that a network fault or a reboot can cause. Only these are retried.
TRANSIENT = {10, 12, 20, 23, 24, 30, 35, 255}
# Messages that mean: do not retry, even if the exit code is in TRANSIENT.
FINAL = ("Permission denied", "Host key verification failed", "IDENTIFICATION HAS CHANGED", "No space left")
FRUITLESS = 5  # give up after so many tries in a row that moved nothing


@dataclass(frozen=True)
class Options:
    """The command line; not every verb uses every option. limit: KiB/s, 0 is none. within: seconds."""

    verb: str
    store: str
    host: str
    to: str
    alias: str
    port: int
    limit: int
    within: int


def main(argv: Sequence[str]) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(prog="push")
    parser.add_argument("verb", choices=list(VERBS))
    for option in ("--store", "--host", "--to", "--alias"):
        parser.add_argument(option, default="")
    parser.add_argument("--port", type=int, default=22)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--within", type=int, default=14400)
    options = Options(**vars(parser.parse_args(argv)))
    os.umask(0o077)
    return print_answer(lambda: answer(options), options.store)


def answer(options: Options) -> dict[str, Any]:
    """The answer of the verb. The directory of the pushes' own files is there from now on."""
    if options.store:
        os.makedirs(folder(options.store), mode=0o700, exist_ok=True)
    return VERBS[options.verb](options)


def folder(store: str) -> str:
    """The directory of the pushes' own files: the key, the locks, the notes of progress."""
    return os.path.join(store, "push")


def key_file(store: str) -> str:
    """The private half of the push key. The public half is beside it, as ssh-keygen names it."""
    return os.path.join(folder(store), "id_ed25519")


def lock_of(store: str, host: str) -> str:
    """The lock file that a push to `host` holds."""
    return os.path.join(folder(store), f"{host}.lock")


def one_push_at_a_time(store: str, host: str) -> AbstractContextManager[None]:
    """Hold the lock of pushes to `host`. A push whose controller is gone ends by itself within seconds."""
    return hold_lock(lock_of(store, host), f"another push to {host} runs", within=60)


def key(store: str) -> str:
    """The public half of the push key, which is made by the first call."""
    path = key_file(store)
    # All hosts of a first deploy ask at once.
    with hold_lock(f"{path}.lock", "another call makes the push key", within=60):
        if not os.path.exists(path):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "hf-push", "-f", path]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    with open(f"{path}.pub", encoding="ascii") as file:
        return " ".join(file.read().split()[:2])


def source(address: str) -> str:
    """The bastion's own address on its route to `address`. A datagram socket connects without sending anything."""
    family, kind, protocol, _, where = socket.getaddrinfo(address, 22, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(where)
        return str(probe.getsockname()[0])


def running(store: str) -> dict[str, dict[str, Any]]:
    """{host: {"host", "done", "total", "seconds"}} of the pushes that run now: bytes, and seconds since the try began."""
    names = [name for name in os.listdir(folder(store)) if name.endswith(".json")]
    notes = [read_record(os.path.join(folder(store), name)) for name in names]
    # A push that was killed leaves its note, and no lock.
    return {note["host"]: note for note in notes if "host" in note and is_locked(lock_of(store, note["host"]))}


def send(options: Options, blobs: Mapping[str, int], known_hosts: str) -> dict[str, Any]:
    """Send every blob to incoming/. rsync's success is no proof; admit hashes. Return the byte counts."""
    target = Target(options.host, options.to, options.port, options.alias, options.limit)
    stem = os.path.join(folder(options.store), options.host)
    blob_folder, private_key = os.path.join(options.store, "blobs"), key_file(options.store)
    paths = Paths(blob_folder, private_key, f"{stem}.known_hosts", f"{stem}.json")
    started = time.monotonic()
    check_complete(options.store, blobs)
    with one_push_at_a_time(options.store, options.host):
        with open(paths.known_hosts, "w", encoding="utf-8") as file:
            file.write(known_hosts)
        try:
            attempts = send_patiently(options, target, paths, blobs, started)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(paths.progress)
    sums = {name: sum(getattr(attempt, name) for attempt in attempts) for name in ("moved", "matched", "sent")}
    return {**sums, "tries": len(attempts), "seconds": time.monotonic() - started}


def send_patiently(
    options: Options, target: Target, paths: Paths, blobs: Mapping[str, int], started: float
) -> list[Attempt]:
    """Run rsync until all is sent. Return the result of every run.

    Raise Refused at the deadline, and if another try would not help.
    """
    attempts: list[Attempt] = []
    deadline = started + options.within
    fruitless = 0
    while True:
        left = deadline - time.monotonic()
        if left < 1:
            what = f"push took longer than {options.within} s"
            raise Refused(target.host, what, found=f"{len(attempts)} tries", next="setting push_deadline")
        attempt = rsync(target, paths, blobs, left)
        attempts.append(attempt)
        if attempt.code == 0:
            return attempts
        check_complete(options.store, blobs)  # somebody may have removed them meanwhile
        fruitless = 0 if attempt.moved else fruitless + 1
        said = last_words(attempt)
        is_final = any(phrase in line for phrase in FINAL for line in attempt.lines)
        if attempt.code not in TRANSIENT or is_final or fruitless == FRUITLESS:
            where = f"{target.host} ({target.to} port {target.port})"
            raise Refused(where, f"rsync failed with code {attempt.code}", found=said)
        print(f"{target.host}: rsync code {attempt.code}, try {len(attempts)}: {said}", file=sys.stderr)
        time.sleep(min(2 ** len(attempts), 30, max(0, deadline - time.monotonic())))


def last_words(attempt: Attempt) -> str:
    """The last lines that give a reason. rsync's summary lines give none and are left out."""
    telling = [line for line in attempt.lines if "rsync error" not in line and "rsync: connection" not in line]
    return "; ".join(telling[-3:] or attempt.lines[-3:])


def check_complete(store: str, blobs: Mapping[str, int]) -> None:
    """Raise Refused if the store lacks one of {sha256: size}."""
    missing = missing_blobs(blobs, held(store, blobs))
    if missing:
        fix = "the deploy again, with the bastion in its --limit: it fetches"
        found = f"without {min(missing)}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        raise Refused(store, f"the bastion lacks {len(missing)} blobs", "all of the release", found, fix)


def wait_until_idle(options: Options) -> dict[str, Any]:
    """Wait until no push to this host runs. The answer is empty."""
    with one_push_at_a_time(options.store, options.host):
        return {}


def send_request(options: Options) -> dict[str, Any]:
    """Send the blobs that standard input names."""
    request = json.load(sys.stdin)
    return send(options, request["blobs"], request["known_hosts"])


# What each verb answers.
VERBS: dict[str, Callable[[Options], dict[str, Any]]] = {
    "key": lambda options: {"key": key(options.store)},
    "source": lambda options: {"source": source(options.to)},
    "idle": wait_until_idle,
    "send": send_request,
    "status": lambda options: {"running": running(options.store)},
}
