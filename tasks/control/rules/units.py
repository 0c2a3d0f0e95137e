"""Bytes for people and from people: decimal units, as disks are sold and networks are billed. Pure."""

from __future__ import annotations

UNITS = ("kB", "MB", "GB", "TB")


def size(count: float) -> str:
    """A number of bytes in few characters: `1.8 GB`."""
    if abs(count) < 1000:
        return f"{count:.0f} B"
    for unit in UNITS[:-1]:
        count /= 1000
        if abs(count) < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def in_bytes(text: str) -> int:
    """`64GB` as a number of bytes."""
    number, unit = text[:-2], text[-2:]
    return int(float(number) * 1000 ** (1 + UNITS.index(unit)))
