"""Asks the running service for the golden queries, as the operator's `probe` says, and compares with the goldens.

The standard library alone: hosts have no numpy, and three queries need none.
"""

from __future__ import annotations

import base64
import json
import math
import signal
import struct
from contextlib import contextmanager

from tasks.shared.errors import Refused

PATIENCE = 60  # seconds for one whole answer, however it comes
LARGEST = 64 << 20  # bytes of one answer


def vectors(entry):
    """[[float]] of a golden: {"shape": [n, 128], "f16": base64, little-endian half floats}."""
    rows, width = entry["shape"]
    flat = struct.unpack(f"<{rows * width}e", base64.b64decode(entry["f16"]))
    return [flat[i * width : (i + 1) * width] for i in range(rows)]


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b))  # noqa: B905 - Python 3.9
    return dot / (math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b)) or 1.0)


def shape(rows):
    """`3 x 128`, or how its rows differ: zeros at the end of each change no cosine, and are another embedding."""
    widths = sorted({len(row) for row in rows})
    return f"{len(rows)} x {' or '.join(map(str, widths))}"


def filled(body, query):
    """The operator's body with {query} in its strings."""
    if isinstance(body, dict):
        return {key: filled(value, query) for key, value in body.items()}
    if isinstance(body, list):
        return [filled(value, query) for value in body]
    return body.replace("{query}", query) if isinstance(body, str) else body


@contextmanager
def patient():
    """Ends what takes longer than PATIENCE: urllib's own timeout is for each read, and a service may drip bytes for ever."""

    def late(number, frame):
        raise TimeoutError(f"no whole answer within {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def probe(asked, goldens):
    """Embed the golden queries through the running service; -> lowest mean cosine. None asked for: not embedded."""
    classes = list((goldens.get("classes") or {}).values())
    if not asked or not classes:
        return None
    import urllib.request  # 50 ms, which every other call of a switch would pay too
    from http.client import HTTPException

    golden, scores = classes[0], []
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the host's own service, whatever its proxy
    for number, query in enumerate(golden["queries"]):
        request = urllib.request.Request(asked["url"], json.dumps(filled(asked["body"], query)).encode())
        request.add_header("Content-Type", "application/json")
        try:
            with patient(), opener.open(request, timeout=PATIENCE) as answer:
                text = answer.read(LARGEST + 1)
            if len(text) > LARGEST:
                raise ValueError(f"more than {LARGEST} bytes")
            found = json.loads(text)
            for key in asked["answer"].split("."):
                found = found[int(key)] if isinstance(found, list) else found[key]
            theirs = vectors(golden["vectors"][f"query{number}"])
            if shape(found) != shape(theirs):
                raise ValueError(f"vectors of {shape(found)}, the goldens' are of {shape(theirs)}")
            score = sum(map(cosine, found, theirs)) / len(theirs)
            if not math.isfinite(score):  # JSON knows NaN, and min() would let it pass
                raise ValueError("numbers that are not finite")
            scores.append(score)
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            ArithmeticError,
            RecursionError,
            HTTPException,
        ) as error:
            found = f"{type(error).__name__}: {str(error)[:200]}"
            said = ("does not embed", "vectors as the probe says", found, "setting probe")
            raise Refused(asked["url"], *said) from None
    if not scores:
        return None
    floor, lowest = asked.get("at_least", 0.99), min(scores)
    if lowest < floor:
        raise Refused(asked["url"], "embeds otherwise than the goldens", f"cosine ≥ {floor}", f"{lowest:.5f}")
    return round(lowest, 6)
