"""The confirmation of a switch over a new connection: both who waits for it and who brings it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from tasks.remote.common.files import is_locked, read_record, read_text, write_file
from tasks.remote.host.records import Records
from tasks.remote.host.switch.outcome import AWAITING
from tasks.remote.host.switch.settle import is_readmitted
from tasks.shared.errors import Refused

WAIT = 0.1  # seconds between two looks at a file
Announce = Callable[[Mapping[str, Any]], None]


def switching_lock(store: str) -> str:
    """The lock file that a running switch holds."""
    return os.path.join(store, ".switch.lock")


def await_confirmation(records: Records, within: float, announce: Announce, answer: Mapping[str, Any]) -> None:
    """Announce `answer` with a token, and wait for that token. Raise Refused where it does not come in `within` seconds."""
    token = f"{os.getpid()}-{time.time_ns()}"
    records.journal("await", token=token, seconds=within)
    announce({**answer, "state": AWAITING, "readmitted": is_readmitted(records), "token": token})
    until = time.monotonic() + within
    while read_text(records.confirmation) != token:
        if time.monotonic() > until:
            found = "nobody could log in again, or the controller died"
            raise Refused("activate", "was not confirmed", f"a new connection within {within:.0f} s", found)
        time.sleep(WAIT)


def bring_confirmation(store: str, token: str, within: float) -> dict[str, Any]:
    """Bring the token of a switch that waits for it. Return how that switch ended, or raise Refused where it does not end."""
    records = Records(store)
    write_file(records.confirmation, token)
    until = time.monotonic() + within
    while True:
        # Asked before the outcome is read: a switch that ends in between has written it by then.
        is_alive = is_locked(switching_lock(store)) and time.monotonic() < until
        outcome = read_record(records.outcome)
        if outcome.get("token") == token:
            return outcome
        if not is_alive:
            found = "it was killed, or never ended"
            raise Refused(store, "has no activation that waits for this", token, found, "the same again")
        time.sleep(WAIT)
