"""Calls of the Hub, tried again while their failure may pass."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from tasks.remote.common.hub import Hub, brief, explain, no_hub
from tasks.shared.errors import Refused

TRIES = 8  # of one call. A download has several files, and each is a call.
LONGEST_WAIT = 300  # seconds, even if the Hub asks for more

Answer = TypeVar("Answer")


def patiently(work: Callable[[], Answer], hub: Hub, repo: str, revision: str) -> Answer:
    """What `work()` returns. A reset, a time-out, a 429 or a 5xx is tried again, TRIES times in all.

    Raise Refused if another try would not help, and after the last try. `repo` and `revision` are for its words.
    """
    import tenacity

    def may_pass(error: BaseException) -> bool:
        return not isinstance(error, Refused) and explain(error, hub, repo, revision) is None

    def say(attempt: tenacity.RetryCallState) -> None:
        print(f"{repo}: {brief(failure(attempt))}; again", file=sys.stderr)

    tries = tenacity.Retrying(
        retry=tenacity.retry_if_exception(may_pass),
        wait=seconds_to_wait,
        stop=tenacity.stop_after_attempt(TRIES),
        before_sleep=say,
        reraise=True,
    )
    try:
        return tries(work)
    except Refused:
        raise
    except Exception as error:
        reason = explain(error, hub, repo, revision)
        raise reason or no_hub(error, hub, repo, TRIES, "look at the network") from None


def seconds_to_wait(attempt: Any) -> float:
    """Seconds until the next try: what the Hub asks for (Retry-After), else a random time that grows with the tries."""
    from tenacity import wait_random_exponential

    response = getattr(failure(attempt), "response", None)
    asked = (response.headers.get("Retry-After") or "") if response is not None else ""
    if asked.isdigit():
        return min(float(asked), LONGEST_WAIT)
    return float(wait_random_exponential(multiplier=0.5, max=30)(attempt))


def failure(attempt: Any) -> BaseException:
    """The error that ended a try of tenacity's."""
    error: BaseException = attempt.outcome.exception()
    return error
