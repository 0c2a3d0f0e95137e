"""The intent of a switch: state/pending keeps its form on disk, and what undoes a switch is never guessed."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tasks.remote.host.intent import Intent, parse_intent
from tasks.remote.host.service import Place

INTENT = Intent(
    before="a" * 64,
    target="b" * 64,
    previous="c" * 64,
    place=Place("/srv/stack", "compose.override.yaml", "stack", "backend"),
    within=600.0,
    had_container=True,
    had_override=False,
    was_running=True,
    was_healthy=False,
    container="d" * 64,
    status="running",
    readmit="true",
    who="ann@laptop",
    why="deploy",
)
DOCUMENT = {
    "from": "a" * 64,
    "to": "b" * 64,
    "previous": "c" * 64,
    "stack": "/srv/stack",
    "override": "compose.override.yaml",
    "project": "stack",
    "service": "backend",
    "within": 600.0,
    "had_container": True,
    "had_override": False,
    "was_running": True,
    "was_healthy": False,
    "container": "d" * 64,
    "status": "running",
    "readmit": "true",
    "who": "ann@laptop",
    "why": "deploy",
}


def test_the_file_is_as_earlier_versions_wrote_it():
    """A host may be updated while a switch is pending; and inspect reads the file too."""
    assert json.loads(INTENT.text()) == DOCUMENT
    assert json.loads(dataclasses.replace(INTENT, confirmed=True).text()) == {**DOCUMENT, "confirmed": True}


@pytest.mark.parametrize("intent", [INTENT, dataclasses.replace(INTENT, confirmed=True, before=None, previous=None)])
def test_what_was_written_is_read_back(intent):
    assert parse_intent(intent.text()) == intent


@pytest.mark.parametrize("key", ["from", "to", "previous", "stack", "override", "project", "service", "within"])
def test_an_intent_without_what_going_back_needs_is_none(key):
    assert parse_intent(json.dumps(DOCUMENT)), "the control"
    with pytest.raises(LookupError):
        parse_intent(json.dumps({name: value for name, value in DOCUMENT.items() if name != key}))
    with pytest.raises((TypeError, ValueError)):
        parse_intent(json.dumps({**DOCUMENT, key: ["x"]}))


@pytest.mark.parametrize("key", ["had_container", "had_override", "was_running", "was_healthy"])
def test_what_the_service_was_is_not_guessed(key):
    with pytest.raises(LookupError):
        parse_intent(json.dumps({name: value for name, value in DOCUMENT.items() if name != key}))
