"""The inspection's command carries a whole program and one quoted question; an answer that cannot be read is unknown."""

from __future__ import annotations

import json
import shlex

import pytest

from tasks.control.inspection import DELIMITER, PROGRAM, modules, text
from tasks.control.operations.inspection_fact import Inspection


def test_the_program_travels_whole_and_the_question_quoted():
    question = json.dumps({"store": "/srv/it's; $(id)"})
    words = Inspection().command(question).get_raw_value()
    head, *program, tail = (
        words.split(f"<<'{DELIMITER}'\n")[0],
        *words.split(f"<<'{DELIMITER}'\n")[1].split(f"\n{DELIMITER}\n"),
    )
    assert program == [text()] and tail == "else echo '{\"python\": null}'; fi"
    assert shlex.split(head.partition("; then ")[2]) == ["python3", "-I", "-", question]


def test_the_program_is_plain_python_with_all_that_it_imports_of_ours():
    compile(text(), "inspection", "exec")
    assert text().isascii() and DELIMITER not in text()
    carried = modules(PROGRAM)
    assert {PROGRAM, "tasks", "tasks.shared.facts", "tasks.remote.inspect.store"} <= set(carried)
    assert not any(name.startswith("tasks.control") for name in carried)
    assert all(repr(name) in text() for name in carried)


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (["welcome", '{"python": [3, 11, 2], "store": 1}', "bye"], {"python": [3, 11, 2], "store": 1}),
        (['{"python": null}'], {"python": None}),
        (["welcome", '{"motd": 1}'], None),
        ([], None),
    ],
)
def test_the_answer_is_found_in_what_a_shell_says_or_is_unknown(output, found):
    assert Inspection().process(output) == found


def test_a_fact_that_fails_is_unknown_and_not_empty():
    assert Inspection.default() is None
