"""The command line of the smoke test."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Floors:
    """The lowest cosines with the goldens that pass: the mean, and the first percentile.

    There is no floor for the minimum: one vector of a thousand may differ by rounding.
    """

    mean: float
    p1: float


@dataclass(frozen=True)
class Options:
    """lock, goldens: paths; goldens None where there are none. tolerance: {class, as cuda/bfloat16: floors} of the settings."""

    lock: str
    goldens: str | None
    device: str
    tolerance: Mapping[str, Floors]


def parse(argv: Sequence[str]) -> Options:
    """The options in `argv`."""
    parser = argparse.ArgumentParser(prog="smoke")
    parser.add_argument("--lock", required=True)
    parser.add_argument("--goldens")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--tolerance", type=floors, action="append", default=[])
    found = parser.parse_args(argv)
    return Options(found.lock, found.goldens, found.device, dict(found.tolerance))


def floors(text: str) -> tuple[str, Floors]:
    """`cuda/bfloat16=0.999,0.99` as (class, floors)."""
    name, _, numbers = text.partition("=")
    mean, p1 = (float(number) for number in numbers.split(","))
    return name, Floors(mean, p1)
