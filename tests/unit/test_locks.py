"""A lock in git is held against the settings: what was made for others is refused, with the command that mends it."""

from __future__ import annotations

import pytest

from tasks.lib import locks, release, settings


@pytest.fixture
def held(document, values, tmp_path, monkeypatch):
    """held(serve, settings): reads a lock that serves so, for an operator whose settings are these."""
    monkeypatch.setattr(locks, "FOLDER", tmp_path)

    def read(serve: dict, asked: dict) -> release.Lock:
        document["serve"] |= serve
        (tmp_path / "lab.json").write_text(release.write(document))
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
    with pytest.raises(release.Refused, match=says) as no:
        held(serve, asked)
    assert "Next: pyinfra -y inventories/lab.py tasks/lock.py" in str(no.value)
