"""Sets of blobs, as {sha256: size in bytes}: what one lacks of another, and how a large blob is split for a drive."""

from __future__ import annotations

from collections.abc import Mapping


def missing_blobs(wanted: Mapping[str, int], have: Mapping[str, int]) -> dict[str, int]:
    """`wanted` without what `have` has by digest *and* size. A blob of another size counts as missing."""
    return {sha256: size for sha256, size in wanted.items() if have.get(sha256) != size}


def split_blob(blob: str, size: int, at_most: int) -> list[tuple[str, int, int]]:
    """The files that a blob becomes in a bundle, as [(name, offset, size)]: itself, or pieces of `at_most` bytes in order."""
    if size <= at_most:
        return [(blob, 0, size)]
    offsets = range(0, size, at_most)
    return [(f"{blob}.{i:03d}", offset, min(at_most, size - offset)) for i, offset in enumerate(offsets)]
