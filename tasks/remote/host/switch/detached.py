"""Runs an activation in a session of its own, so that it goes on when the connection breaks or the controller dies."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

from tasks.remote.common.files import as_refused, hold_lock, write_file
from tasks.remote.host.records import Records
from tasks.remote.host.switch.activation import activate
from tasks.remote.host.switch.confirmation import Announce, switching_lock
from tasks.remote.host.switch.outcome import UNKNOWN, Outcome
from tasks.remote.host.switch.request import Request
from tasks.remote.host.switch.settle import is_readmitted
from tasks.shared.deadlines import COMMAND, REVERT
from tasks.shared.errors import Refused


class Stopped(Exception):
    """A signal asks the activation to end. It goes back first."""


def activate_detached(request: Request) -> dict[str, Any]:
    """Start the activation; return its first answer: what is to be confirmed, or how it ended."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            os.close(reading)
            leave_connection()
            run_activation(request, writing)
        finally:
            os._exit(0)
    os.close(writing)
    longest = 2 * request.within + request.soak + REVERT + 2 * COMMAND + 120
    line = read_line(reading, time.monotonic() + longest)
    if line is not None:
        answer: dict[str, Any] = json.loads(line)
        return answer
    no = Refused("activate", "ended without an answer", found="killed, or out of time", next="the same again")
    return Outcome(UNKNOWN, is_readmitted(Records(request.store)), no.error).answer()


def leave_connection() -> None:
    """Make this process independent of the connection that started it. A signal becomes the exception Stopped."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def stop(number: int, frame: FrameType | None) -> None:
    """The handler of SIGTERM and SIGINT."""
    raise Stopped(signal.Signals(number).name)


def read_line(pipe: int, until: float) -> bytes | None:
    """The first line that comes through `pipe`; None where it ends, or the monotonic clock passes `until`, before that."""
    text = b""
    while b"\n" not in text and select.select([pipe], [], [], max(0, until - time.monotonic()))[0]:
        chunk = os.read(pipe, 65536)
        if not chunk:
            break
        text += chunk
    line, end, _ = text.partition(b"\n")
    return line if end else None


def run_activation(request: Request, pipe: int) -> None:
    """Activate, alone on this host. Each answer goes to `pipe`; the last one also into state/outcome, once a token was given."""
    tokens: list[str] = []

    def send(answer: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # nobody may read it any more; the activation goes on
            os.write(pipe, json.dumps({"ok": True, **answer}).encode() + b"\n")

    def announce(answer: Mapping[str, Any]) -> None:
        tokens.append(answer["token"])
        send(answer)

    try:
        # An activation whose controller died puts the old release back after a while. This one waits for that.
        longest = request.confirm + REVERT + COMMAND
        with hold_lock(switching_lock(request.store), "is being switched", within=longest):
            answer = try_activation(request, announce, tokens)
            if tokens:
                write_file(Records(request.store).outcome, json.dumps({"token": tokens[0], **answer}))
    except Exception as error:
        answer = {"ok": False, "error": as_refused(error, request.store).error}
    send(answer)


def try_activation(request: Request, announce: Announce, tokens: list[str]) -> dict[str, Any]:
    """The answer of the activation, or its refusal. After the token was given an error leaves the state unknown."""
    try:
        return {"ok": True, **activate(request, announce)}
    except Exception as error:
        no = as_refused(error, request.store).error
        if not tokens:
            return {"ok": False, "error": no}
        return Outcome(UNKNOWN, is_readmitted(Records(request.store)), no).answer()
