"""The stick: what the connected bastion wrote is what the far one takes, or it is named; cut off anywhere, it goes on."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from tasks.control.operations import bundling
from tasks.shared.errors import Refused
from tasks.shared.lock import lock_text
from tests.integration.conftest import Machine

pytestmark = pytest.mark.integration
PART = 1_000_000
LAYER = os.urandom(4 * PART + 17)
ADAPTER = "docai/colpali-tiny: adapter_model.safetensors"


@pytest.fixture
def document(document, contents, bastion):
    """The made-up release, with a layer that is split."""
    old = document["image"]["layers"][0]["digest"][7:]
    new = hashlib.sha256(LAYER).hexdigest()
    del contents[old]
    contents[new] = LAYER
    (bastion.store / "blobs" / old).unlink()
    (bastion.store / "blobs" / new).write_bytes(LAYER)
    document["image"]["layers"] = [{"digest": f"sha256:{new}", "size": len(LAYER)}]
    return document


@pytest.fixture
def stick(tmp_path):
    (tmp_path / "stick").mkdir()
    return tmp_path / "stick"


def asked(bastion, document, contents=None, **more):
    tool = bastion.root / "tool.tar.gz"
    tool.write_bytes(b"the tool")
    files = {"tool.tar.gz": str(tool), "wheels/x-1-py3-none-any.whl": str(tool)}
    about = {"who": "me@here", "contents_at": "yesterday" if contents else None}
    texts = {"lock.json": lock_text(document), "README.txt": "read me\n", "goldens.json": "{}\n"}
    return {"lock": document, "contents": contents or {}, "texts": texts, "files": files, "about": about, **more}


def write(bastion, stick, document, ok=True, contents=None, part=PART, **more):
    words = ("--bundle", stick, "--part-size", part)
    return bastion.run("bundle", "write", *words, document=asked(bastion, document, contents, **more), ok=ok)


def take(host, stick, document, ok=True):
    return host.run("bundle", "take", "--bundle", stick, document=document, ok=ok)


def blobs(machine):
    return {path.name: path.read_bytes() for path in (machine.store / "blobs").iterdir()}


def pieces(stick):
    return sorted(path.name for path in (stick / "parts").iterdir())


def flip(path, at=5):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_what_is_written_is_what_is_taken(bastion, host, stick, document, contents):
    told = write(bastion, stick, document)
    layer = hashlib.sha256(LAYER).hexdigest()
    assert pieces(stick) == sorted([*(set(contents) - {layer}), *(f"{layer}.{i:03d}" for i in range(5))])
    assert told["written"] == told["bytes"] == sum(path.stat().st_size for path in files_of(stick)) - notes(stick)
    taken = take(host, stick, document)
    assert blobs(host) == contents
    assert taken["bytes"] == taken["read"] == sum(map(len, contents.values()))
    assert {path.stat().st_mode & 0o777 for path in (host.store / "blobs").iterdir()} == {0o444}
    assert host.run("store", "admit", document=document)["built"], "and the release builds as ever"


def files_of(stick):
    return [path for path in stick.rglob("*") if not path.is_dir()]


def notes(stick):
    return sum((stick / name).stat().st_size for name in ("bundle.json", "SHA256SUMS"))


def test_a_second_write_and_a_second_take_change_nothing(bastion, host, stick, document):
    write(bastion, stick, document)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files_of(stick)}
    again = write(bastion, stick, document)
    assert again["written"] == 0 and not again["changed"]
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files_of(stick)} == before
    take(host, stick, document)
    assert take(host, stick, document)["read"] == 0


def test_the_standard_tool_proves_a_bundle_too(bastion, stick, document):
    write(bastion, stick, document)
    check = ["sha256sum", "-c", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=stick, capture_output=True).returncode == 0
    flip(stick / "wheels/x-1-py3-none-any.whl")
    assert subprocess.run(check, cwd=stick, capture_output=True).returncode == 1


def test_a_bundle_is_what_fat32_takes(bastion, stick, document):
    write(bastion, stick, document)
    for path in stick.rglob("*"):
        assert not path.is_symlink() and re.fullmatch(r"[A-Za-z0-9._-]{1,200}", path.name)
        assert path.is_dir() or path.stat().st_nlink == 1
    lower = [str(path).lower() for path in stick.rglob("*")]
    assert len(set(lower)) == len(lower)


# ---------------------------------------------------------------------------------------------------- cut off anywhere


@pytest.fixture
def large(document, bastion):
    """A layer of 64 parts in the bastion's store, for a kill in the middle."""
    data = os.urandom(64 * PART)
    sha256 = hashlib.sha256(data).hexdigest()
    document["image"]["layers"] = [{"digest": f"sha256:{sha256}", "size": len(data)}]
    (bastion.store / "blobs" / sha256).write_bytes(data)
    return sha256


def kill_in_the_middle(machine, words, stdin, far_enough):
    """SIGKILL the program once `far_enough()`; it must not have come to its end."""
    command = [sys.executable, str(machine.tool), "bundle", *map(str, words), "--store", str(machine.store)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdin.write(json.dumps(stdin))
    process.stdin.close()
    deadline = time.monotonic() + 60
    while not far_enough():
        assert process.poll() is None and time.monotonic() < deadline, "it never was in the middle"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout.read() == "", "it had come to its end"


def test_a_write_that_is_killed_goes_on_and_only_its_last_part_is_written_twice(bastion, host, stick, document, large):
    kill_in_the_middle(
        bastion,
        ("write", "--bundle", stick, "--part-size", PART),
        asked(bastion, document),
        lambda: (stick / "parts").exists() and len(list((stick / "parts").glob(f"{large}.*[0-9]"))) > 20,
    )
    assert not (stick / "bundle.json").exists()
    cut = take(host, stick, document, ok=False)["error"]
    assert "bundle.json" in cut["where"] and "cut off" in cut["found"] and blobs(host) == {}
    there = {path.name: path.stat() for path in (stick / "parts").iterdir() if not path.name.endswith(".new")}
    told = write(bastion, stick, document)
    assert 20 * PART < sum(stat.st_size for stat in there.values()) == told["bytes"] - told["written"]
    assert all((stick / "parts" / name).stat().st_ino == stat.st_ino for name, stat in there.items())
    take(host, stick, document)


def test_a_take_that_is_killed_reads_no_whole_part_twice(bastion, host, stick, document, large):
    told = write(bastion, stick, document)
    staged = host.store / "fetch" / large
    kill_in_the_middle(
        host,
        ("take", "--bundle", stick),
        document,
        lambda: staged.exists() and staged.stat().st_size > 20 * PART,
    )
    assert large not in blobs(host)
    again = take(host, stick, document)
    assert again["read"] < told["bytes"] - 19 * PART
    assert hashlib.sha256(blobs(host)[large]).hexdigest() == large
    assert list((host.store / "fetch").iterdir()) == []


def test_a_drive_with_an_older_bundle_holds_none_while_it_is_written_anew(bastion, host, stick, document, contents):
    write(bastion, stick, document)
    second, sha, data = next_version(document, contents)
    (bastion.store / "blobs" / sha).write_bytes(data)
    words = ("--bundle", stick, "--part-size", PART, "--within", 0)
    bastion.run("bundle", "write", *words, document=asked(bastion, second), ok=False)
    for wanted in (document, second):
        assert "cut off" in take(host, stick, wanted, ok=False)["error"]["found"]


def test_a_drive_that_loses_what_came_first_is_found_out(bastion, stick, document, large):
    """As one does that is smaller than it says: its first part changes while later ones are written."""
    words = ["bundle", "write", "--store", bastion.store, "--bundle", stick, "--part-size", PART]
    command = [sys.executable, str(bastion.tool), *map(str, words)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdin.write(json.dumps(asked(bastion, document)))
    process.stdin.close()
    first = stick / "parts" / f"{large}.000"
    while not first.exists():
        assert process.poll() is None
        time.sleep(0.001)
    flip(first)
    error = json.loads(process.stdout.read())["error"]
    process.wait()
    assert error["what"] == "does not read back as it was written" and str(first) in error["where"]
    assert not (stick / "bundle.json").exists()
    write(bastion, stick, document)


# ------------------------------------------------------------------------------------------------------ what is wrong


def spoil(stick, document, kind):
    """-> (the blob that suffers, how take must call it)"""
    layer = hashlib.sha256(LAYER).hexdigest()
    part = stick / "parts" / f"{layer}.002"
    if kind == "flipped":
        flip(part)
        return layer, f"parts/{layer}.002 is damaged"
    if kind == "truncated":
        os.truncate(part, 999)
        return layer, f"parts/{layer}.002 has 999 of {PART} bytes"
    if kind == "missing":
        part.unlink()
        return layer, f"parts/{layer}.002 is missing"
    if kind == "a link":
        part.rename(stick / "elsewhere")
        part.symlink_to(stick / "elsewhere")
        return layer, f"parts/{layer}.002 is no regular file"
    if kind == "a pipe":
        part.unlink()
        os.mkfifo(part)
        return layer, f"parts/{layer}.002 is no regular file"
    sha256 = document["models"][0]["files"]["adapter_model.safetensors"]["sha256"]
    (stick / "parts" / sha256).write_bytes(b"Adapter")
    about = json.loads((stick / "bundle.json").read_text())
    entry = next(part for part in about["parts"] if part["blob"] == sha256)
    entry["sha256"] = hashlib.sha256(b"Adapter").hexdigest()
    (stick / "bundle.json").write_text(json.dumps(about))
    return sha256, f"{ADAPTER}: 7 bytes, sha256"


@pytest.mark.parametrize("kind", ["flipped", "truncated", "missing", "a link", "a pipe", "forged with its manifest"])
def test_a_part_that_is_wrong_is_named_and_the_others_are_kept(bastion, host, stick, document, contents, kind):
    write(bastion, stick, document)
    victim, says = spoil(stick, document, kind)
    error = take(host, stick, document, ok=False)["error"]
    assert says in error["found"] and error["next"]
    assert blobs(host) == {sha: data for sha, data in contents.items() if sha != victim}
    assert write(bastion, stick, document)["written"] == (7 if victim != hashlib.sha256(LAYER).hexdigest() else PART)
    assert take(host, stick, document)["read"] <= PART and blobs(host) == contents


def test_everything_that_is_wrong_is_named_at_once(bastion, host, stick, document):
    write(bastion, stick, document)
    layer = hashlib.sha256(LAYER).hexdigest()
    flip(stick / "parts" / f"{layer}.001")
    (stick / "parts" / f"{layer}.003").unlink()
    sha256 = document["models"][0]["files"]["adapter_model.safetensors"]["sha256"]
    flip(stick / "parts" / sha256)
    found = take(host, stick, document, ok=False)["error"]["found"]
    assert all(word in found for word in (f"{layer}.001 is damaged", f"{layer}.003 is missing", ADAPTER))


def test_a_bundle_of_another_release_is_refused(bastion, host, stick, document):
    write(bastion, stick, document)
    document["models"][0]["commit"] = "c" * 40
    error = take(host, stick, document, ok=False)["error"]
    assert error["what"] == "is of another release" and "lock.json" in error["next"] and blobs(host) == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.update(format=2),
        lambda about: about["parts"][0].update(name="../../../etc/passwd"),
        lambda about: about["parts"][0].update(name=f"parts/{'0' * 64}/x"),
        lambda about: about["parts"][0].update(size=-1),
        lambda about: about["parts"][0].update(offset="0"),
        lambda about: about["parts"][0].update(sha256=3),
        lambda about: about.pop("release"),
        lambda about: about.update(parts=7),
    ],
)
def test_a_manifest_that_is_not_one_is_refused(bastion, host, stick, document, change):
    write(bastion, stick, document)
    about = json.loads((stick / "bundle.json").read_text())
    change(about)
    (stick / "bundle.json").write_text(json.dumps(about))
    assert "no bundle of format 1" in take(host, stick, document, ok=False)["error"]["what"]
    assert blobs(host) == {}
    (stick / "bundle.json").write_text("{")
    assert "no bundle of format 1" in take(host, stick, document, ok=False)["error"]["what"]


@pytest.mark.parametrize("offset", [PART - 1, PART + 1])
def test_parts_that_overlap_or_leave_a_gap_are_refused(bastion, host, stick, document, offset):
    write(bastion, stick, document)
    about = json.loads((stick / "bundle.json").read_text())
    next(part for part in about["parts"] if part["name"].endswith(".001"))["offset"] = offset
    (stick / "bundle.json").write_text(json.dumps(about))
    assert "gaps" in take(host, stick, document, ok=False)["error"]["found"]


def test_what_else_lies_on_the_drive_is_neither_read_nor_deleted(bastion, host, stick, document, contents):
    foreign = [stick / "System Volume Information", stick / "parts/mine.txt", stick / "wheels/notes.txt"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    write(bastion, stick, document)
    take(host, stick, document)
    assert blobs(host) == contents and all(path.read_text() == "mine" for path in foreign)


def test_a_rotten_blob_of_the_bastion_does_not_travel(bastion, stick, document):
    victim = document["models"][0]["files"]["adapter_model.safetensors"]["sha256"]
    flip(bastion.store / "blobs" / victim)
    error = write(bastion, stick, document, ok=False)["error"]
    assert error["what"] == "is damaged" and victim in error["where"]
    assert not (stick / "parts").exists() and not (bastion.store / "blobs" / victim).exists()
    assert "lacks 1 blobs" in write(bastion, stick, document, ok=False)["error"]["what"]


def test_a_drive_that_is_not_there_is_refused(bastion, stick, document):
    error = write(bastion, stick / "unplugged", document, ok=False)["error"]
    assert error["what"] == "is not there" and not (stick / "unplugged").exists()


# ---------------------------------------------------------------------------------------------------------- less of it


def next_version(document, contents, data=b"adapter, version 2"):
    second = json.loads(json.dumps(document))
    sha = hashlib.sha256(data).hexdigest()
    second["models"][0]["commit"] = "c" * 40
    second["models"][0]["files"]["adapter_model.safetensors"] = {"size": len(data), "sha256": sha, "etag": sha}
    return second, sha, data


def test_what_the_far_side_has_stays_at_home(bastion, host, stick, document, contents):
    write(bastion, stick, document)
    take(host, stick, document)
    found = host.run("bundle", "contents")
    assert found["blobs"] == {sha: len(data) for sha, data in contents.items()}
    second, sha, data = next_version(document, contents)
    (bastion.store / "blobs" / sha).write_bytes(data)
    write(bastion, stick, second, contents=found["blobs"])
    assert pieces(stick) == [sha], "and the parts of the first bundle are gone"
    assert take(host, stick, second)["bytes"] == len(data)
    assert blobs(host) == {**contents, sha: data}


def test_what_was_left_out_and_is_gone_there_is_named(bastion, host, stick, document, contents):
    write(bastion, stick, document)
    take(host, stick, document)
    less = write(bastion, stick, document, contents=host.run("bundle", "contents")["blobs"])
    assert less["changed"] and less["written"] == 0
    assert pieces(stick) == [] and take(host, stick, document)["read"] == 0
    victim = document["models"][0]["files"]["adapter_model.safetensors"]["sha256"]
    (host.store / "blobs" / victim).unlink()
    error = take(host, stick, document, ok=False)["error"]
    assert f"{ADAPTER}: was left out, as contents.json of yesterday has it" in error["found"]


def test_contents_name_no_blob_that_is_damaged(bastion):
    victim = min(blobs(bastion))
    flip(bastion.store / "blobs" / victim, at=0)
    found = bastion.run("bundle", "contents")
    assert found["damaged"] == [victim] and victim not in found["blobs"]
    assert not (bastion.store / "blobs" / victim).exists(), "the next bundle brings it, and take must see that it lacks"


def test_a_blob_of_another_size_is_not_had(bastion, stick, document, contents):
    have = {sha: len(data) for sha, data in contents.items()}
    victim = document["models"][0]["files"]["adapter_model.safetensors"]["sha256"]
    have[victim] += 1
    write(bastion, stick, document, contents=have)
    assert pieces(stick) == [victim]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2, "at": "", "blobs": {}}', '{"format": 1, "at": "", "blobs": {"../x": 1}}']
)
def test_what_is_no_have_json_is_refused(tmp_path, text):
    path = tmp_path / "contents.json"
    with pytest.raises(Refused, match="cannot be read"):
        bundling.read_contents(str(path))
    path.write_text(text)
    with pytest.raises(Refused, match=r"is no contents\.json of format 1"):
        bundling.read_contents(str(path))
    path.write_text(json.dumps({"format": 1, "at": "now", "blobs": {"a" * 64: 3}}))
    assert bundling.read_contents(str(path)) == ({"a" * 64: 3}, "now")


def test_the_tools_archive_is_the_same_each_time_and_holds_the_last_commit():
    first = bundling.archive()
    assert first[4:8] == bytes(4), "gzip's own time is left out"
    assert bundling.archive() == first
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        names = archive.getnames()
    assert {"hf-offline/deploy.py", "hf-offline/requirements.txt", "hf-offline/tasks/remote/bastion/fetch.py"} <= set(
        names
    )
    assert all(name.startswith("hf-offline") for name in names)


def test_goldens_and_signatures_of_an_older_bundle_do_not_stay(bastion, stick, document):
    texts = {"lock.json": lock_text(document), "goldens.json": "{}", "lock.json.sig": "x", "goldens.json.sig": "y"}
    write(bastion, stick, document, texts=texts)
    assert set(texts) <= {path.name for path in stick.iterdir()}
    write(bastion, stick, document, texts={"lock.json": texts["lock.json"]})
    assert set(texts) & {path.name for path in stick.iterdir()} == {"lock.json"}


# --------------------------------------------------------------------------------------------------------------- space


@pytest.fixture
def tight(tmp_path):
    """A filesystem of 4 MiB."""
    where = tmp_path / "tight"
    where.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", where], capture_output=True).returncode:
        pytest.skip("needs root, to mount a small filesystem")
    yield where
    subprocess.run(["umount", where], check=True)


def test_a_drive_that_is_too_small_is_refused_before_a_byte(bastion, tight, document):
    error = write(bastion, tight, document, ok=False)["error"]
    assert error["what"] == "has too little space" and f"(mounted: {tight})" in error["found"]
    assert list(tight.iterdir()) == []


def test_an_earlier_bundle_makes_room_and_a_whole_one_needs_none(bastion, tight, document, contents):
    have = {hashlib.sha256(LAYER).hexdigest(): len(LAYER)}
    second, sha, data = next_version(document, contents, os.urandom(2_400_000))
    third, other, more = next_version(document, contents, os.urandom(2_400_000))
    for name, content in ((sha, data), (other, more)):
        (bastion.store / "blobs" / name).write_bytes(content)
    write(bastion, tight, second, contents=have)
    assert write(bastion, tight, second, contents=have)["written"] == 0
    write(bastion, tight, third, contents=have)  # both together are more than the drive has
    assert f"{sha}.000" not in pieces(tight) and f"{other}.002" in pieces(tight)


def test_a_store_that_is_too_small_is_refused_before_a_byte(bastion, tight, tmp_path, stick, document):
    write(bastion, stick, document)
    (tmp_path / "far").mkdir()
    far = Machine(tmp_path / "far")
    far.store = tight
    far.call("setup", "--store", tight)
    error = take(far, stick, document, ok=False)["error"]
    assert error["what"] == "has too little space" and str(tight) in error["where"]
    assert blobs(far) == {} and list((tight / "fetch").iterdir()) == []


def test_two_writers_do_not_meet(bastion, stick, document):
    with open(bastion.store / ".bundle.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert write(bastion, stick, document, ok=False)["error"]["what"] == "writes a bundle"


def test_a_write_ends_at_its_deadline_and_goes_on(bastion, stick, document):
    words = ("--bundle", stick, "--part-size", PART, "--within", 0)
    error = bastion.run("bundle", "write", *words, document=asked(bastion, document), ok=False)["error"]
    assert "not done in time" in error["what"] and not (stick / "bundle.json").exists()
    write(bastion, stick, document)
