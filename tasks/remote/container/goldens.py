"""The goldens of a release, and the judgement of vectors that are compared with them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.remote.container.options import Floors
from tasks.remote.container.report import Checks, Comparison


@dataclass(frozen=True)
class Goldens:
    """The file of goldens: of which release, and {class: {"queries", "inputs_sha256", "vectors"}}."""

    release: str
    classes: dict[str, dict[str, Any]]


def read_goldens(path: str) -> Goldens:
    """The goldens in a file. Raise OSError or ValueError where it cannot be read."""
    with open(path, encoding="ascii") as file:
        found = json.load(file)
    return Goldens(str(found.get("release")), found.get("classes") or {})


def check_release(checks: Checks, goldens: Goldens, release_id: str) -> None:
    """The goldens must be of this release."""
    checks.add("goldens are this release's", goldens.release == release_id, goldens.release[:12])


def width_faults(shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """The arrays that are not (count, width) with the width of the others, as `name (…)`; [] is good.

    The width is the model's: 128 for ColPali and its kind, 320 to 4096 for others. Most arrays say which one is right.
    """
    widths = [shape[1] for shape in shapes.values() if is_matrix(shape)]
    usual = max(widths, key=widths.count, default=0)
    good = {name for name, shape in shapes.items() if is_matrix(shape) and shape[1] == usual}
    return [f"{name} {tuple(shape)}" for name, shape in shapes.items() if name not in good]


def is_matrix(shape: Sequence[int]) -> bool:
    """Whether this is the shape of vectors: one or more, each of one or more numbers."""
    return len(shape) == 2 and min(shape) > 0


def judge(checks: Checks, name: str, cosines: Collection[float], floors: Floors) -> Comparison:
    """Compare: the cosines of all vectors with the goldens of the class `name` must reach the floors."""
    found = sorted(cosines)
    mean, p1 = sum(found) / len(found), found[len(found) // 100]
    detail = f"mean {mean:.5f}, p1 {p1:.5f} against {name}; expected at least {floors.mean}, {floors.p1}"
    checks.add("embeddings are the goldens'", mean >= floors.mean and p1 >= floors.p1, detail)
    return Comparison(against=name, mean=round(mean, 6), p1=round(p1, 6), min=round(found[0], 6))
