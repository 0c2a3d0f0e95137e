"""Vectors as JSON carries them, and how near two are."""

from __future__ import annotations

import pytest

from tasks.shared.vectors import cosine, pack, unpack


def test_vectors_are_read_back_as_they_were():
    rows = [(1.0, 0.5), (-0.25, 0.0), (0.125, 2.0)]
    assert unpack(pack(rows)) == rows and pack(rows)["shape"] == [3, 2]


def test_the_bytes_are_little_endian_half_floats_in_order():
    assert unpack({"shape": [1, 2], "f16": "ADwAwA=="}) == [(1.0, -2.0)] and pack([[1, -2]])["f16"] == "ADwAwA=="


@pytest.mark.parametrize(("rows", "said"), [([], "no numbers"), ([[1.0], [1.0, 2.0]], "1 or 2 numbers")])
def test_vectors_without_one_width_are_not_packed(rows, said):
    with pytest.raises(ValueError, match=said):
        pack(rows)


@pytest.mark.parametrize(
    ("a", "b", "expected"), [((1, 0), (2, 0), 1), ((1, 0), (0, 3), 0), ((1, 1), (-1, -1), -1), ((0, 0), (1, 0), 0)]
)
def test_cosine(a, b, expected):
    assert cosine(a, b) == pytest.approx(expected)
