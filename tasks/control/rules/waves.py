"""The order of a rollout: which hosts are switched together. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def waves(hosts: Sequence[str], sizes: Sequence[Any], fixed: Mapping[str, int] | None = None) -> list[list[str]]:
    """Split `hosts` (inventory order) into waves. A size is a number, or a share of all hosts ("10%"), rounded up.

    The last size repeats until every host is in a wave. Hosts in `fixed` (host -> wave, from 1) go first, by their
    numbers; those without one follow, by `sizes`.
    """
    fixed = {name: number for name, number in (fixed or {}).items() if name in hosts}
    plan = [[name for name in hosts if fixed.get(name) == number] for number in sorted(set(fixed.values()))]
    rest, pending = [name for name in hosts if name not in fixed], list(sizes) or ["100%"]
    while rest:
        size = pending.pop(0) if len(pending) > 1 else pending[0]
        count = math.ceil(len(hosts) * float(size[:-1]) / 100) if isinstance(size, str) else size
        plan.append(rest[: max(1, int(count))])
        rest = rest[max(1, int(count)) :]
    return plan
