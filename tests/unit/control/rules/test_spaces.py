"""Two embedding spaces do not answer one index: waves that would mix them are refused until the operator has said how."""

from __future__ import annotations

import pytest

from tasks.control.rules.spaces import moves_at_once, space_problem
from tasks.shared.lock import lock_text, parse_lock
from tasks.shared.spaces import embedding_space


@pytest.fixture
def other(document):
    """A release in another space."""
    document["serve"]["dtype"] = "float32"
    return parse_lock(lock_text(document))


def test_a_space_change_needs_the_operators_word(settings, lock, other):
    here = embedding_space(lock)
    assert space_problem(here, lock.id, lock, settings, at_once=False) == []
    (why,) = space_problem(here, lock.id, other, settings, at_once=False)
    assert "would mix them" in why and "Next: " in why
    assert space_problem(here, lock.id, other, settings, at_once=True) == []
    for said in ({"embedding_space_change": "mixed-accepted"}, {"drain": "x", "readmit": "y"}):
        assert space_problem(here, lock.id, other, settings.model_copy(update=said), at_once=False) == []
    for said in ({"drain": "x"}, {"readmit": "y"}):
        assert space_problem(here, lock.id, other, settings.model_copy(update=said), at_once=False)


def test_a_space_that_cannot_be_read_is_not_taken_for_the_same(settings, lock, document):
    document["serve"]["attention"] = "eager"
    same_space = parse_lock(lock_text(document))
    assert "unknown" in space_problem("unknown", lock.id, same_space, settings, at_once=False)[0]
    assert space_problem("unknown", lock.id, lock, settings, at_once=False) == [], (
        "a deploy of the same release repairs it"
    )


def test_a_host_that_serves_nothing_mixes_nothing(settings, other):
    assert space_problem("none", None, other, settings, at_once=False) == []


OLD = dict.fromkeys("abcd", "old")


@pytest.mark.parametrize(
    ("waves", "spaces", "good"),
    [
        ([["a"], ["b", "c", "d"]], OLD, False),
        ([["a", "b", "c", "d"]], OLD, True),
        ([["a"], ["b", "c", "d"]], {**OLD, "a": "new"}, True),  # that wave ends the mix
        ([["a"], ["b", "c", "d"]], {**dict.fromkeys("abc", "new"), "d": "old"}, True),  # a host is back
        ([["a"], ["b", "c", "d"]], {"a": "old", "b": "new", "c": "new", "d": "old"}, False),
        ([["a"], ["b", "c"]], {**OLD, "a": "new"}, False),  # a host that is not in the plan
    ],
)
def test_one_wave_for_all_who_are_behind_mixes_nothing(waves, spaces, good):
    assert moves_at_once(waves, spaces, "new") is good
