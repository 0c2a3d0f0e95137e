"""The waves of a rollout: every host once, in the inventory's order, the hosts with a wave of their own first."""

from __future__ import annotations

import pytest

from tasks.control.rules.waves import waves


@pytest.mark.parametrize(
    ("count", "sizes", "expected"),
    [
        (5, [1, "100%"], [1, 4]),
        (10, [1, "10%", "100%"], [1, 1, 8]),
        (3, [1], [1, 1, 1]),
        (0, [1], []),
        (4, ["50%"], [2, 2]),
        (1, [5], [1]),
        (3, [], [3]),
    ],
)
def test_waves_hold_every_host_once_and_in_order(count, sizes, expected):
    hosts = [f"gpu{i}" for i in range(count)]
    plan = waves(hosts, sizes)
    assert [len(wave) for wave in plan] == expected
    assert [name for wave in plan for name in wave] == hosts


def test_a_hosts_own_wave_comes_first_by_its_number():
    plan = waves(["a", "b", "c", "d"], [1], {"c": 2, "d": 1, "gone": 1})
    assert plan == [["d"], ["c"], ["a"], ["b"]]
