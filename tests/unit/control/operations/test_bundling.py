"""A bundle for the far side: what it lacks, the small files, the tool and its wheels; and the far side's list of what it has."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from tasks.control.git.files import FOLDER
from tasks.control.git.lockfile import lock_path
from tasks.control.operations.bundling import (
    CONTENTS,
    archive,
    bundle,
    extra_files,
    list_contents,
    read_contents,
    small_files,
)
from tasks.control.rules.states import State
from tasks.shared.errors import Refused
from tasks.shared.lock import lock_text
from tests.unit.control.harness import make_lab

WRITTEN = {"ok": True, "bytes": 5000, "changed": True, "sums": "5" * 64, "parts": 9, "written": 4000}


@pytest.fixture
def lab(settings, lock, desk):
    (desk / FOLDER).mkdir(parents=True)
    lock_path(settings).write_text(lock_text(lock.document))
    chosen = settings.model_copy(update={"bundle": "/media/stick", "bundle_part_size": "1kB"})
    lab = make_lab(chosen, lock, words=("-y", "inventories/prod.py", "tasks/bundle.py"))
    lab.target("bastion").answers = {
        ("setup", ""): {"ok": True},
        ("wheels", "get"): {"ok": True, "files": ["a.whl", "b.whl"]},
        ("bundle", "write"): WRITTEN,
        ("bundle", "contents"): {"ok": True, "at": "noon", "blobs": {"a" * 64: 3}, "damaged": [], "bytes": 3},
    }
    return lab


@pytest.fixture
def me(lab):
    return lab.run.bastion


def write(lab, contents=None, at=None):
    return lab.perform("bastion", bundle, contents=contents or {}, contents_at=at)


def test_a_bundle_holds_the_release_the_tool_and_its_wheels(lab, me, lock):
    assert write(lab).good
    heard = lab.target("bastion").call("bundle", "write")
    assert heard.document["lock"] == lock.document and heard.document["contents"] == {}
    assert heard.document["texts"]["lock.json"] == lock_text(lock.document)
    files = heard.document["files"]
    assert files["tool.tar.gz"] == "/srv/models/outgoing/tool.tar.gz"
    assert files["wheels/a.whl"].startswith("/srv/models/wheels-") and len(files) == 3
    assert heard.options["bundle"] == "/media/stick" and heard.options["part-size"] == "1000"
    assert me.state is State.WRITTEN and f"sha256 of SHA256SUMS is {'5' * 64}" in me.why
    assert (me.report.bundle_bytes, me.report.bundle_parts, me.report.written_bytes) == (5000, 9, 4000)
    assert me.report.release == lock.id


def test_what_the_far_side_has_is_named_and_not_counted(lab, me, lock):
    contents = lock.image_blobs()
    assert write(lab, contents, "noon").good
    heard = lab.target("bastion").call("bundle", "write").document
    assert heard["contents"] == contents and heard["about"]["contents_at"] == "noon" and "@" in heard["about"]["who"]


def test_the_same_bundle_again_is_unchanged(lab, me):
    lab.target("bastion").answers["bundle", "write"] = {**WRITTEN, "changed": False}
    assert write(lab).good and me.state is State.UNCHANGED


def test_a_bundle_that_turned_out_too_large_fails(lab, me):
    me.settings = me.settings.model_copy(update={"bundle_capacity": "1kB"})
    assert not write(lab).good
    assert me.state is State.FAILED and "fits on 1 kB: no" in me.why


@pytest.mark.parametrize("word", ["mkdir", "sha256sum"])
def test_a_tool_that_cannot_be_put_aside_stops_it(lab, me, word):
    lab.target("bastion").shell[word] = False
    assert not write(lab).good and "cannot write the tool's archive" in me.why
    assert "bundle write" not in lab.target("bastion").heard()


def test_a_dry_run_says_whether_it_fits_and_writes_nothing(settings, lab, me, lock):
    lab.run.command_line = make_lab(settings, words=("--dry", "i.py", "tasks/bundle.py")).run.command_line
    assert lab.rehearse("bastion", bundle, contents={}, contents_at=None).commands == 0
    assert (
        me.state is State.WOULD_CHANGE and me.why.startswith("fits on 64 GB: yes") and lab.target("bastion").calls == []
    )
    assert me.report.bundle_bytes > sum(lock.blobs().values()) and me.report.bundle_parts == len(lock.blobs())


def test_an_unfit_bastion_writes_no_bundle(lab, me):
    me.says(State.UNFIT)
    assert write(lab).commands == 0 and lab.target("bastion").calls == []


def test_the_small_files_tell_the_far_side_what_to_copy_where(lab, lock, settings):
    goldens = lab.run.goldens
    bare = small_files(lock, settings, goldens)
    assert set(bare) == {"lock.json", "README.txt"} and "goldens" not in bare["README.txt"]
    goldens.save(lock, None)
    goldens.path.with_name("lab.goldens.json.sig").write_text("G")
    lock_path(settings).with_name("lab.json.sig").write_text("L")
    found = small_files(lock, settings, goldens)
    assert set(found) == {"lock.json", "goldens.json", "lock.json.sig", "goldens.json.sig", "README.txt"}
    assert found["goldens.json.sig"] == "G" and found["goldens.json"] == goldens.text()
    for line in (
        "cp lock.json ~/hf-offline/group_data/locks/lab.json",
        "cp goldens.json ~/hf-offline/group_data/locks/lab.goldens.json",
        "cp lock.json.sig ~/hf-offline/group_data/locks/lab.json.sig",
    ):
        assert line in found["README.txt"]
    assert extra_files(lock, goldens)["goldens.json"] == len(goldens.text())


def test_the_tool_travels_as_it_was_committed():
    with tarfile.open(fileobj=io.BytesIO(archive())) as packed:
        names = packed.getnames()
    assert "hf-offline/deploy.py" in names and "hf-offline/requirements.txt" in names
    assert not any(".git/" in name for name in names) and archive() == archive()


# ------------------------------------------------------------------------------------------------------------ contents


def contents_file(desk, **change):
    document = {"format": 1, "at": "noon", "blobs": {"a" * 64: 3}, **change}
    path = Path(desk / "contents.json")
    path.write_text(json.dumps(document))
    return str(path)


def test_the_far_sides_list_is_read(desk):
    assert read_contents(contents_file(desk)) == ({"a" * 64: 3}, "noon")
    assert read_contents("") == ({}, None)


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"blobs": {"x": 3}}, {"blobs": {"a" * 64: "3"}}, {"blobs": {"a" * 64: True}}, {"blobs": []}],
)
def test_a_list_that_is_none_is_refused_whole(desk, change):
    with pytest.raises(Refused, match=r"is no contents\.json of format 1"):
        read_contents(contents_file(desk, **change))


def test_a_list_that_is_missing_or_no_json_is_refused(desk):
    with pytest.raises(Refused, match="cannot be read"):
        read_contents(str(desk / "none.json"))
    for text in ("{", "[]", "{}", "5"):
        (desk / "odd.json").write_text(text)
        with pytest.raises(Refused, match=r"is no contents\.json"):
            read_contents(str(desk / "odd.json"))


def test_what_this_bastion_holds_is_written_for_the_far_side_to_read(lab, me, desk):
    (desk / "reports").mkdir()
    assert lab.perform("bastion", list_contents).good
    assert read_contents(str(desk / CONTENTS)) == ({"a" * 64: 3}, "noon")
    assert me.state is State.WRITTEN and (me.report.blob_count, me.report.hashed_bytes) == (1, 3)


def test_damaged_blobs_are_told(lab, me, desk):
    answer = {"ok": True, "at": "noon", "blobs": {}, "damaged": ["d" * 64], "bytes": 3}
    lab.target("bastion").answers["bundle", "contents"] = answer
    assert (
        lab.perform("bastion", list_contents).good
        and f"damaged here, so the next bundle brings them again: {'d' * 12}" in me.why
    )


def test_a_bastion_that_was_not_inspected_or_is_only_asked_dry_lists_nothing(settings, lab, me, desk):
    me.facts = None
    assert not lab.perform("bastion", list_contents).good and "could not be inspected" in me.why
    lab.run.command_line = make_lab(settings, words=("--dry", "i.py", "tasks/contents.py")).run.command_line
    assert lab.rehearse("bastion", list_contents).commands == 0 and me.state is State.WOULD_CHANGE
    assert not (desk / CONTENTS).exists()
