"""A host that loads the model by itself: the real client against a Hub that misbehaves, into a cache that ends complete."""

from __future__ import annotations

import os

import pytest

from tasks.shared.layout import cache_tree
from tasks.shared.lock import lock_text, parse_lock
from tests.integration.conftest import ADAPTER
from tests.lab import hub as stand_in

pytestmark = pytest.mark.integration


@pytest.fixture
def release(host, hub, document, tmp_path):
    """The lock of what the Hub has, as the text that a host mounts into the container."""
    question = {
        "token": None,
        "endpoint": hub["endpoint"],
        "xet": False,
        "models": [{"repo": ADAPTER, "revision": "main"}],
    }
    answer = host.run("fetch", "resolve", document=question)
    document |= {"models": answer["models"], "asked": answer["asked"]}
    document["serve"]["delivery"] = "online"
    (tmp_path / "lock.json").write_text(lock_text(document))
    (tmp_path / "home").mkdir()
    stand_in.LOG.clear()
    return parse_lock(lock_text(document))


def load(host, hub, tmp_path, ok=True, **more):
    env = {**os.environ, "HF_ENDPOINT": hub["endpoint"], "HF_HUB_DISABLE_XET": "1", **more}
    return host.call("online", "--lock", tmp_path / "lock.json", "--home", tmp_path / "home", ok=ok, env=env)


def test_a_cache_is_loaded_complete_and_a_second_run_asks_nothing(host, hub, release, tmp_path):
    home, tree = tmp_path / "home", cache_tree(release)
    wanted = release.model_files()
    assert load(host, hub, tmp_path) == {"ok": True, "files": len(wanted), "bytes": sum(wanted.values())}
    for path, target in tree.links.items():
        assert os.readlink(home / path) == target and (home / path).is_file()
    assert {path: (home / path).read_text() for path in tree.texts} == dict(tree.texts)
    assert not (home / "fetch").exists() and stand_in.LOG != []
    stand_in.LOG.clear()
    assert load(host, hub, tmp_path)["files"] == 0 and stand_in.LOG == []


def test_a_reset_is_tried_again(host, hub, release, tmp_path):
    stand_in.FAULTS.update(drop=1 << 20, drop_by="rst", drops=1)
    load(host, hub, tmp_path)
    assert stand_in.FAULTS["drops"] <= 0, "the fault never struck"


def test_bytes_that_are_not_the_locks_get_no_name(host, hub, release, tmp_path):
    stand_in.FAULTS["corrupt"] = "model.safetensors"
    error = load(host, hub, tmp_path, ok=False)["error"]
    assert error["what"] == "does not match the lock" and "model.safetensors" in error["where"]
    assert not list((tmp_path / "home").rglob("refs/main")), "a client finds no model in a cache that is not complete"
    stand_in.FAULTS.clear()
    load(host, hub, tmp_path)


def test_a_commit_that_the_hub_has_no_more_is_named(host, hub, release, tmp_path):
    stand_in.FAULTS["deleted"] = [model.commit for model in release.models]
    error = load(host, hub, tmp_path, ok=False)["error"]
    assert "no such revision" in error["what"] and error["expected"] in stand_in.FAULTS["deleted"]


def test_a_damaged_file_of_the_right_size_is_loaded_again_where_all_is_hashed(host, hub, release, tmp_path):
    load(host, hub, tmp_path)
    model = release.served
    path = tmp_path / "home/hub" / model.folder / "blobs" / model.files["adapter_model.safetensors"].etag
    path.chmod(0o644)
    path.write_bytes(b"Adapter")
    assert load(host, hub, tmp_path)["files"] == 0, "the control: by its size alone it is whole"
    assert load(host, hub, tmp_path, HF_OFFLINE_FULL="1")["files"] == 1 and path.read_bytes() == b"adapter"
