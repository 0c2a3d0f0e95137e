"""Asks the forbidden targets for a TCP connection. On an air-gapped host none of them answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence

DEADLINE = 2.0  # seconds for all targets together, and for the resolver


def ask(targets: Sequence[str]) -> Callable[[], list[str]]:
    """Ask all targets ("name:port") at once, in the background.

    Return a function that waits until DEADLINE after this call at most, and returns the targets that answered, sorted.
    """
    answered: list[str] = []

    def connect(target: str) -> None:
        name, _, port = target.rpartition(":")
        try:
            socket.create_connection((name, int(port)), timeout=DEADLINE).close()
            answered.append(target)
        except (OSError, ValueError, OverflowError):
            pass

    # Daemon threads, because nothing ends a resolver that waits: without a network it may take 20 s to say no.
    threads = [threading.Thread(target=connect, args=(target,), daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    end = time.monotonic() + DEADLINE

    def answers() -> list[str]:
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return sorted(answered)

    return answers
