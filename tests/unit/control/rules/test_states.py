"""The states: which are good news is said here once more, by hand, so that nobody changes it in passing."""

from __future__ import annotations

from tasks.control.rules.states import State, table

BAD = {
    "unfit",
    "held",
    "unreachable",
    "unreadable",
    "failed",
    "not proven",
    "unsigned",
    "damaged",
    "drifted",
    "withdrawn",
    "not withdrawn",
    "frozen",
    "unknown",
    "incomplete",
}
GOOD = {
    "active",
    "unchanged",
    "proven",
    "up to date",
    "in sync",
    "switching",
    "empty",
    "intact",
    "pruned",
    "unlocked",
    "written",
    "out of service",
    "fit",
    "ready",
    "would change",
    "would hash",
    "would unlock",
}


def test_every_state_is_either_good_or_bad_news():
    assert {state.label for state in State if not state.good} == BAD
    assert {state.label for state in State if state.good} == GOOD


def test_every_state_has_a_name_of_its_own():
    labels = [state.label for state in State]
    assert len(set(labels)) == len(labels) == len(State.__members__), "two alike would be one"


def test_a_bad_state_says_what_to_do_and_a_good_one_nothing():
    assert all(bool(state.fix) is not state.good for state in State)
    assert all(state.meaning for state in State)


def test_only_good_news_can_be_on_the_way():
    on_the_way = {state.label for state in State if state.on_the_way}
    assert on_the_way == {"fit", "ready", "would change", "would hash"} and on_the_way <= GOOD


def test_colours_are_those_of_good_and_bad():
    assert {state.colour for state in State if state.good} == {"green"}
    assert {state.label for state in State if state.colour == "yellow"} == {"held"}
    assert State.FAILED.colour == "red"


def test_the_manual_has_a_row_for_each():
    rows = table().splitlines()[2:]
    assert len(rows) == len(State)
    assert "| `frozen` | no | Going back failed too. Nothing more is tried. | Fix the service by hand. |" in rows
    assert "| `active` | yes |" in table() and table().count("| yes |") == len(GOOD)
