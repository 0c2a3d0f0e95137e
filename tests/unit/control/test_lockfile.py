"""A lock in git is held against the settings: what was made for others is refused, with the command that mends it."""

from __future__ import annotations

import hashlib
import json

import pytest

from tasks.control import lockfile as locks
from tasks.control import settings
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock, lock_text


@pytest.fixture
def held(document, values, tmp_path, monkeypatch):
    """held(serve, settings): reads a lock that serves so, for an operator whose settings are these."""
    monkeypatch.setattr(locks, "FOLDER", tmp_path)

    def read(serve: dict, asked: dict) -> Lock:
        document["serve"] |= serve
        (tmp_path / "lab.json").write_text(lock_text(document))
        return locks.read_lock(settings.check([("x", {**values, **asked})]), "inventories/lab.py")

    return read


def test_a_lock_that_the_settings_ask_for_is_read(held):
    assert held({}, {}).serve["family"] == "colpali"
    assert held({"image_processor": "pil"}, {"image_processor": "pil"}).serve["image_processor"] == "pil"


@pytest.mark.parametrize(
    ("serve", "asked", "says"),
    [
        ({}, {"dtype": "float32"}, "has another dtype than the settings ask for; expected float32, found bfloat16"),
        ({}, {"family": "colqwen2"}, "has another family than the settings ask for; expected colqwen2, found colpali"),
        (
            {},
            {"image_processor": "pil"},
            "has another image_processor than the settings ask for; expected pil, found default",
        ),
        (
            {"image_processor": "pil"},
            {},
            "has another image_processor than the settings ask for; expected default, found pil",
        ),
    ],
)
def test_a_lock_for_other_settings_is_refused(held, serve, asked, says):
    with pytest.raises(Refused, match=says) as no:
        held(serve, asked)
    assert "Next: pyinfra -y inventories/lab.py tasks/lock.py" in str(no.value)


DEEP = b'{"format": ' + b"[" * 100_000


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"5", b"\xff\xfe", DEEP, b'{"format": 1}', None])
def test_a_lock_or_goldens_that_somebody_wrote_by_hand_are_one_clear_refusal(values, tmp_path, monkeypatch, data):
    monkeypatch.setattr(locks, "FOLDER", tmp_path)
    wanted = settings.check([("x", values)])
    for path in (tmp_path / "lab.json", tmp_path / "lab.goldens.json"):
        path.write_bytes(data) if data is not None else path.mkdir()
    for read in (
        lambda: locks.read_lock(wanted, "inventories/lab.py"),
        lambda: locks.old_lock(wanted),
        locks.Goldens(wanted).document,
    ):
        with pytest.raises(Refused, match=str(tmp_path)):
            read()
    with pytest.raises(Refused, match=f"git checkout {tmp_path}/lab.json"):
        locks.read_lock(wanted, "inventories/lab.py")


def test_a_lock_whose_question_is_no_question_is_refused(document, values, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "FOLDER", tmp_path)
    (tmp_path / "lab.json").write_text(lock_text({**document, "asked": 5}))
    with pytest.raises(Refused, match="asked"):
        locks.read_lock(settings.check([("x", values)]), "inventories/lab.py")


WHOLE = {"queries": ["q"], "vectors": {"query0": {"shape": [1, 2], "f16": "AAAAAA=="}}}


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
def test_goldens_are_whole(entry, good):
    assert locks.sound(entry) is good


def test_goldens_that_somebody_formatted_anew_are_read_hashed_and_sent_as_they_are(lock, values, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "FOLDER", tmp_path)
    text = json.dumps({"release": lock.id, "classes": {"cpu": {**WHOLE, "queries": ["facturé"]}}}, ensure_ascii=False)
    (tmp_path / "lab.goldens.json").write_text(text, encoding="utf-8")
    found = locks.Goldens(settings.check([("x", values)]))
    assert found.text(lock) == text and found.digest(lock) == hashlib.sha256(text.encode()).hexdigest()
