"""Whether a rollout may let the fleet answer in two embedding spaces for a while. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tasks.control.settings import Settings
from tasks.shared.lock import Lock
from tasks.shared.spaces import embedding_space


def space_problem(here: str, current: str | None, lock: Lock, settings: Settings, at_once: bool) -> list[str]:
    """Why this host may not be switched to the release in waves, as sentences; [] where it may.

    Vectors of two spaces do not compare, so two may answer one index only where the operator has said how.
    here: the host's space. current: its release. at_once: all hosts that answer in another space move together.
    """
    there = embedding_space(lock)
    if current == lock.id or here in ("none", there):
        return []  # the same release stays the same, even where the host has lost its own lock of it
    if settings.embedding_space_change == "mixed-accepted" or (settings.drain and settings.readmit) or at_once:
        return []
    one = 'one wave for all (waves = ["100%"], no host with a `wave` of its own, max_failed_hosts = 0, no --limit)'
    fix = f'{one}, or `drain` and `readmit`, or embedding_space_change = "mixed-accepted"'
    return [f"answers in embedding space {here}; the release's is {there}, and waves would mix them. Next: {fix}"]


def moves_at_once(waves: Sequence[Sequence[str]], spaces: Mapping[str, str], there: str) -> bool:
    """Whether one wave takes every host of `spaces` ({host: space}, the whole fleet) that is not in the space `there`.

    The others may be there already. Then the fleet is mixed now, and that wave ends it.
    """
    behind = {name for name, here in spaces.items() if here != there}
    return any(behind <= set(wave) for wave in waves)
