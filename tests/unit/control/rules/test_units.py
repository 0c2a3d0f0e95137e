"""Bytes for people, and from people: decimal, as disks are sold."""

from __future__ import annotations

import pytest

from tasks.control.rules.units import in_bytes, size


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (5_990_000_000, "6.0 GB"), (2e15, "2000.0 TB")]
)
def test_sizes_for_people(count, text):
    assert size(count) == text


@pytest.mark.parametrize(("text", "count"), [("64GB", 64 * 10**9), ("1.5MB", 1_500_000), ("2kB", 2000)])
def test_sizes_of_drives_are_decimal(text, count):
    assert in_bytes(text) == count
