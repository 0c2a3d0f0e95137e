"""Asks the running service for the golden queries, as the operator's `probe` says, and compares with the goldens."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tasks.shared.errors import Refused
from tasks.shared.vectors import cosine, unpack

PATIENCE = 60  # seconds for one whole answer
LARGEST = 64 << 20  # bytes of one answer


def shape(rows: Sequence[Sequence[float]]) -> str:
    """`3 x 128`, or with every width that a row has. Zeros at the end of a row change no cosine, but they are another embedding."""
    widths = sorted({len(row) for row in rows})
    return f"{len(rows)} x {' or '.join(map(str, widths))}"


def filled(body: Any, query: str) -> Any:
    """The operator's body with the query in place of {query}, in every string of it."""
    if isinstance(body, dict):
        return {key: filled(value, query) for key, value in body.items()}
    if isinstance(body, list):
        return [filled(value, query) for value in body]
    return body.replace("{query}", query) if isinstance(body, str) else body


@contextmanager
def patient() -> Iterator[None]:
    """Raise TimeoutError in what takes longer than PATIENCE. urllib's timeout is for one read: a service that sends a byte
    from time to time would never end it."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no whole answer within {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def probe(asked: Mapping[str, Any] | None, goldens: Mapping[str, Any]) -> float | None:
    """Embed the golden queries through the running service, and compare. Return the lowest mean cosine of a query.

    `asked`: the operator's setting, {"url", "body", "answer", "at_least"}. Without it nothing is embedded, and the answer is
    None. Raise Refused where the service does not embed, or embeds otherwise than the goldens.
    """
    classes = list((goldens.get("classes") or {}).values())
    if not asked or not classes:
        return None
    golden = classes[0]
    scores = [score_query(asked, golden, number, query) for number, query in enumerate(golden["queries"])]
    if not scores:
        return None
    floor, lowest = asked.get("at_least", 0.99), min(scores)
    if lowest < floor:
        raise Refused(asked["url"], "embeds otherwise than the goldens", f"cosine ≥ {floor}", f"{lowest:.5f}")
    return round(lowest, 6)


def score_query(asked: Mapping[str, Any], golden: Mapping[str, Any], number: int, query: str) -> float:
    """The mean cosine of one query's vectors with its goldens. Raise Refused where the service does not embed it."""
    from http.client import HTTPException

    try:
        found = json.loads(post(asked["url"], json.dumps(filled(asked["body"], query)).encode()))
        for key in asked["answer"].split("."):
            found = found[int(key)] if isinstance(found, list) else found[key]
        expected = unpack(golden["vectors"][f"query{number}"])
        if shape(found) != shape(expected):
            raise ValueError(f"vectors of {shape(found)}, the goldens' are of {shape(expected)}")
        score = sum(map(cosine, found, expected)) / len(expected)
        if not math.isfinite(score):  # JSON can carry NaN, and min() would let it pass
            raise ValueError("numbers that are not finite")
        return score
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError, HTTPException) as error:
        why = f"{type(error).__name__}: {str(error)[:200]}"
        raise Refused(asked["url"], "does not embed", "vectors as the probe says", why, "setting probe") from None


def post(url: str, body: bytes) -> bytes:
    """The service's answer to a JSON document. Raise OSError or HTTPException without one, ValueError for one too large."""
    import urllib.request  # this import costs 50 ms, and most calls of a switch do not probe

    # The service is this host's own, so no proxy of the environment is asked.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, body)
    request.add_header("Content-Type", "application/json")
    with patient(), opener.open(request, timeout=PATIENCE) as answer:
        data: bytes = answer.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"more than {LARGEST} bytes")
    return data
