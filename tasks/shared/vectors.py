"""Embeddings as JSON carries them, and how near two vectors are, without numpy: GPU hosts have none."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any


def pack(rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Vectors as {"shape": [count, width], "f16": base64 of little-endian half floats}.

    Raise ValueError where there is none, or where they have different widths.
    """
    widths = {len(row) for row in rows}
    if len(widths) != 1:
        raise ValueError(f"vectors of {' or '.join(map(str, sorted(widths))) or 'no'} numbers")
    flat = [float(value) for row in rows for value in row]
    data = struct.pack(f"<{len(flat)}e", *flat)
    return {"shape": [len(rows), *widths], "f16": base64.b64encode(data).decode("ascii")}


def unpack(entry: Mapping[str, Any]) -> list[tuple[float, ...]]:
    """The vectors of what `pack` made."""
    count, width = entry["shape"]
    flat = struct.unpack(f"<{count * width}e", base64.b64decode(entry["f16"]))
    return [flat[i * width : (i + 1) * width] for i in range(count)]


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """The cosine of the angle between two vectors; 0 where one of them is zero."""
    dot = sum(x * y for x, y in zip(a, b))  # noqa: B905 - Python 3.9
    return dot / (math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b)) or 1.0)
