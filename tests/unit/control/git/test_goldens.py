"""Goldens in git: read only where they are whole, hashed as they lie there, written for one release."""

from __future__ import annotations

import hashlib
import json

import pytest

from tasks.control.git.files import FOLDER
from tasks.control.git.goldens import Goldens
from tasks.shared.errors import Refused
from tasks.shared.lock import lock_text, parse_lock

WHOLE = {"queries": ["q"], "vectors": {"query0": {"shape": [1, 2], "f16": "AAAAAA=="}}}


@pytest.fixture
def write(desk):
    path = desk / FOLDER / "lab.goldens.json"
    path.parent.mkdir(parents=True)
    return lambda text: path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("entry", "good"),
    [
        (WHOLE, True),
        ({**WHOLE, "queries": []}, False),
        ({**WHOLE, "queries": ["q", "another"]}, False),
        ({**WHOLE, "queries": "q" * 2}, False),
        ({**WHOLE, "vectors": "x"}, False),
        ({**WHOLE, "vectors": {"query0": {"shape": [-1, -2], "f16": "AAAAAA=="}}}, False),
        ({**WHOLE, "vectors": {"query0": {"shape": [2, 2], "f16": "AAAAAA=="}}}, False),
        ({**WHOLE, "vectors": {"query0": {"shape": [1, 2], "f16": "AAAA"}}}, False),
        ({**WHOLE, "vectors": {"query0": {"shape": [0, 2], "f16": ""}}}, False),
        ({"vectors": {}}, False),
        ([], False),
    ],
)
def test_goldens_are_whole_or_refused(lock, settings, write, entry, good):
    write(json.dumps({"release": lock.id, "classes": {"cpu/bfloat16": entry}}))
    if good:
        assert Goldens(settings).belong_to(lock)
        return
    with pytest.raises(Refused, match="holds no goldens"):
        Goldens(settings).belong_to(lock)


def test_goldens_that_somebody_formatted_anew_are_read_and_hashed_as_they_are(lock, settings, write):
    text = json.dumps({"release": lock.id, "classes": {"cpu": {**WHOLE, "queries": ["facturé"]}}}, ensure_ascii=False)
    write(text)
    found = Goldens(settings)
    assert found.text() == text and found.digest(lock) == hashlib.sha256(text.encode()).hexdigest()


def test_goldens_of_another_release_are_none(lock, document, settings, desk):
    goldens = Goldens(settings)
    assert goldens.document() == {} and not goldens.belong_to(lock) and goldens.digest(lock) is None
    goldens.save(lock, {"class": "cpu/bfloat16", **WHOLE})
    document["serve"]["dtype"] = "float32"
    other = parse_lock(lock_text(document))
    assert goldens.belong_to(lock) and not goldens.belong_to(other) and goldens.digest(other) is None
    assert goldens.document()["classes"]["cpu/bfloat16"]["queries"] == ["q"]


def test_a_smoke_command_that_embeds_nothing_leaves_goldens_without_a_class(lock, settings, desk):
    Goldens(settings).save(lock, None)
    assert Goldens(settings).belong_to(lock) and Goldens(settings).document()["classes"] == {}
