"""The rules of what goes, without a machine."""

from __future__ import annotations

import copy
import json

import pytest

from tasks.remote.host import prune
from tasks.remote.host.uses import ContainerUse, Use
from tasks.shared.lock import parse_lock
from tests.unit.conftest import DOCUMENT


@pytest.fixture
def locks():
    """Two releases, `old` and `new`, of the same models and the same image."""
    found = {}
    for name, dtype in (("old", "float32"), ("new", "bfloat16")):
        document = copy.deepcopy(DOCUMENT)
        document["serve"]["dtype"] = dtype
        found[name] = parse_lock(json.dumps(document))
    return found


def test_a_blob_of_two_releases_that_go_is_freed_once(locks):
    blobs = locks["old"].blobs()
    assert prune.freed_bytes(["old", "new"], locks, blobs) == {"old": sum(blobs.values()), "new": 0}


def test_an_image_goes_unless_a_container_or_a_kept_release_has_it(locks, monkeypatch):
    monkeypatch.setattr(prune, "image_size", lambda tag: 7)
    lock = locks["old"]
    assert prune.unused_images("/s", ["old"], [], locks, []) == {lock.tag: 7}
    assert prune.unused_images("/s", ["old"], ["new"], locks, []) == {}
    for container in (ContainerUse((), lock.tag, "sha256:other"), ContainerUse((), "other", lock.image.ids[0])):
        assert prune.unused_images("/s", ["old"], [], locks, [container]) == {}


@pytest.mark.parametrize(
    ("path", "stays"),
    [("/s/releases/old", True), ("/s/releases/old/hub/x", True), ("/s/releases/older", False), ("/s/releases", False)],
)
def test_a_release_stays_while_something_uses_it_or_a_file_in_it(path, stays):
    reasons = {}
    prune.add_used_releases(reasons, "/s", ["old"], [Use(path, "open")])
    assert reasons == ({"old": "open"} if stays else {})
