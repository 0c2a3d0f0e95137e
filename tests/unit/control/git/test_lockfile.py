"""A lock in git is held against the settings: what was made for others is refused, with the command that fixes it."""

from __future__ import annotations

import pytest

from tasks.control.git.files import FOLDER, replace, signature
from tasks.control.git.goldens import Goldens
from tasks.control.git.lockfile import lock_in_git, lock_path, old_lock, read_lock, served
from tasks.control.settings_layers import read_settings
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock, lock_text

INVENTORY = "inventories/lab.py"


@pytest.fixture
def folder(desk):
    (desk / FOLDER).mkdir(parents=True)
    return desk / FOLDER


@pytest.fixture
def held(document, values, folder):
    """held(serve, settings): reads a lock that serves so, for an operator whose settings are these."""

    def read(serve: dict, asked: dict) -> Lock:
        document["serve"] |= serve
        (folder / "lab.json").write_text(lock_text(document))
        return read_lock(read_settings([("x", {**values, **asked})]), INVENTORY)

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
        (
            {},
            {"models": [{"repo": "docai/colpali-tiny", "revision": "v2"}]},
            "was made for other models than the settings ask for",
        ),
    ],
)
def test_a_lock_for_other_settings_is_refused(held, serve, asked, says):
    with pytest.raises(Refused, match=says) as no:
        held(serve, asked)
    assert "Next: pyinfra -y inventories/lab.py tasks/lock.py" in str(no.value)


def test_a_lock_that_is_missing_names_the_command_that_makes_it_or_the_bundle(settings, folder):
    with pytest.raises(
        Refused, match=r"lab\.json: does not exist.*Next: pyinfra -y inventories/lab\.py tasks/lock\.py"
    ):
        read_lock(settings, INVENTORY)
    far = settings.model_copy(update={"source": "bundle"})
    with pytest.raises(Refused, match=r"Next: cp lock\.json group_data/locks/lab\.json, from the bundle"):
        read_lock(far, INVENTORY)
    assert lock_in_git(settings) is None and old_lock(settings) is None


DEEP = b'{"format": ' + b"[" * 100_000


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"5", b"\xff\xfe", DEEP, b'{"format": 1}', None])
def test_a_lock_or_goldens_that_somebody_wrote_by_hand_are_one_clear_refusal(settings, folder, data):
    for path in (folder / "lab.json", folder / "lab.goldens.json"):
        path.write_bytes(data) if data is not None else path.mkdir()
    for read in (lambda: read_lock(settings, INVENTORY), lambda: old_lock(settings), Goldens(settings).document):
        with pytest.raises(Refused, match=str(FOLDER)):
            read()
    with pytest.raises(Refused, match=f"git checkout {FOLDER}/lab.json"):
        read_lock(settings, INVENTORY)
    assert lock_in_git(settings) is None


def test_a_lock_whose_question_is_no_question_is_refused(document, settings, folder):
    (folder / "lab.json").write_text(lock_text({**document, "asked": 5}))
    with pytest.raises(Refused, match="asked"):
        read_lock(settings, INVENTORY)


def test_a_lock_made_for_others_can_still_be_followed_and_compared_with(document, settings, folder):
    document["serve"]["dtype"] = "float32"
    (folder / "lab.json").write_text(lock_text(document))
    old, found = old_lock(settings), lock_in_git(settings)
    assert old and old["serve"]["dtype"] == "float32" and found and found.serve["dtype"] == "float32"
    with pytest.raises(Refused, match="has another dtype"):
        read_lock(settings, INVENTORY)


def test_what_is_served_has_no_defaults_and_a_baked_one_its_home(settings):
    assert served(settings) == {
        "family": "colpali",
        "dtype": "bfloat16",
        "attention": "sdpa",
        "model": "docai/colpali-tiny",
    }
    more = served(settings.model_copy(update={"delivery": "bake", "image_processor": "pil"}))
    assert more["delivery"] == "bake" and more["hf_home"] == "/models/hf" and more["image_processor"] == "pil"


def test_a_file_that_is_written_anew_loses_its_signature_and_leaves_nothing_staged(settings, desk):
    path = lock_path(settings)
    replace(path, "one\n")
    path.with_name("lab.json.sig").write_text("signed")
    assert signature(path) == "signed"
    replace(path, "two\n")
    assert path.read_text() == "two\n" and signature(path) is None
    assert [each.name for each in path.parent.iterdir()] == ["lab.json"]
