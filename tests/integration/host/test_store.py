"""Admit, build, verify: what the store promises about bytes, each promise attacked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat

import pytest

from tasks.remote.host import prune, releases, uses, verify
from tasks.shared import layout
from tasks.shared.errors import Refused
from tasks.shared.lock import parse_lock

pytestmark = pytest.mark.integration


def admit(host, document, ok=True):
    return host.run("store", "admit", document=document, ok=ok)


def fill(host, contents):
    host.incoming(contents)
    return host


def test_admit_builds_the_release_by_hard_links(host, document, lock, contents):
    answer = admit(fill(host, contents), document)
    assert answer["admitted"] == sum(map(len, contents.values())) and answer["built"]
    root = host.store / "releases" / lock.id
    for path, sha256 in layout.tree(lock).blobs.items():
        assert (root / path).samefile(host.store / "blobs" / sha256)
    snapshot = root / "hub/models--docai--colpali-tiny/snapshots" / ("a" * 40)
    assert (snapshot / "nested/deep/vocab.txt").read_text() == "words"
    assert json.loads((root / "lock.json").read_text())["models"] == document["models"]


def test_what_is_admitted_is_roots_and_read_only(host, document, lock, contents):
    admit(fill(host, contents), document)
    for blob in (host.store / "blobs").iterdir():
        assert stat.S_IMODE(blob.stat().st_mode) == 0o444 and blob.stat().st_uid == 0
    for folder, _, _ in os.walk(host.store / "releases" / lock.id):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o555


def test_a_second_admit_changes_nothing(host, document, lock, contents):
    admit(fill(host, contents), document)
    before = (host.store / "releases" / lock.id).stat().st_ino
    answer = admit(host, document)
    assert answer["admitted"] == 0 and not answer["built"] and not answer["relinked"]
    assert (host.store / "releases" / lock.id).stat().st_ino == before


def spoil(contents, kind):
    changed = dict(contents)
    victim = sorted(contents)[0]
    if kind == "missing":
        del changed[victim]
    elif kind == "changed":
        changed[victim] = bytes([contents[victim][0] ^ 1]) + contents[victim][1:]
    elif kind == "longer":
        changed[victim] += b"!"
    else:
        changed["evil.py"] = b"import os"
    return changed


@pytest.mark.parametrize("kind", ["missing", "changed", "longer", "extra"])
def test_missing_changed_and_extra_refuse_and_a_whole_push_mends(host, document, lock, contents, kind):
    answer = admit(fill(host, spoil(contents, kind)), document, ok=False)
    assert answer["error"]["what"] and answer["error"]["found"]
    # A blob that is whole and wrong was sent as the bastion has it: sending it again would not mend that.
    assert (f"sha256sum blobs/{min(contents)} in the bastion's store" in answer["error"]["next"]) is (kind == "changed")
    assert not (host.store / "releases" / lock.id).exists()
    lacking = host.run("store", "ready", document=document)["missing"]
    assert not (host.store / "incoming/evil.py").exists()
    admit(fill(host, {sha256: contents[sha256] for sha256 in lacking}), document)
    assert (host.store / "releases" / lock.id).is_dir()


def test_a_link_in_incoming_is_never_followed(host, document, contents, tmp_path):
    victim = sorted(contents)[0]
    secret = tmp_path / "secret"
    secret.write_bytes(contents[victim])
    fill(host, {name: data for name, data in contents.items() if name != victim})
    (host.store / "incoming" / victim).symlink_to(secret)
    admit(host, document, ok=False)
    assert not (host.store / "blobs" / victim).exists()


def test_another_release_shares_blobs_and_brings_only_what_differs(host, document, lock, contents):
    admit(fill(host, contents), document)
    second = json.loads(json.dumps(document))
    new = b"adapter, version 2"
    sha = hashlib.sha256(new).hexdigest()
    second["models"][0]["commit"] = "c" * 40
    second["models"][0]["files"]["adapter_model.safetensors"] = {"size": len(new), "sha256": sha, "etag": sha}
    ready = host.run("store", "ready", document=second)
    assert ready["missing"] == {sha: len(new)}
    host.incoming({sha: new})
    assert admit(host, second)["admitted"] == len(new)
    assert (host.store / "releases" / lock.id).is_dir()


def test_a_flipped_byte_is_found_named_and_repaired_in_every_release(host, document, lock, contents):
    admit(fill(host, contents), document)
    victim = document["models"][0]["files"]["adapter_model.safetensors"]["sha256"]
    blob = host.store / "blobs" / victim
    times = blob.stat()
    blob.write_bytes(b"Adapter")
    os.utime(blob, ns=(times.st_atime_ns, times.st_mtime_ns))
    answer = host.run("store", "verify", document=document)
    assert list(answer["damaged"]) == [victim] and answer["verified"] is None, "proven bytes are no proof of these"
    assert answer["damaged"][victim]["what"] == "docai/colpali-tiny: adapter_model.safetensors"
    assert host.run("store", "ready", document=document)["missing"] == {victim: 7}
    host.incoming({victim: contents[victim]})
    assert admit(host, document)["relinked"]
    path = f"hub/models--docai--colpali-tiny/blobs/{victim}"
    assert (host.store / "releases" / lock.id / path).read_bytes() == b"adapter"
    assert host.run("store", "verify", document=document)["damaged"] == {}


def test_what_is_planted_in_a_release_is_found_and_rebuilt(host, document, lock, contents):
    admit(fill(host, contents), document)
    root = host.store / "releases" / lock.id
    (root / "hub/modeling.py").write_text("import os")
    assert host.run("store", "verify", document=document)["wrong"] == ["extra hub/modeling.py"]
    answer = admit(host, document)
    assert answer["built"] and answer["replaced"]
    assert not (root / "hub/modeling.py").exists()
    # a container may still have the old tree mounted
    host.run("store", "ready", document=document)
    assert list((host.store / "releases").glob(f".{lock.id}.*.aside/hub/modeling.py"))
    assert host.run("store", "verify", document=document)["wrong"] == []


def test_an_interrupted_admit_sends_no_byte_twice(host, document, contents):
    fill(host, contents)
    victim = sorted(contents)[0]
    os.rename(host.store / "incoming" / victim, host.store / "taken" / victim)  # as a kill in the middle leaves it
    ready = host.run("store", "ready", document=document)
    assert ready["partial"][victim] == len(contents[victim])
    admit(host, document)


def test_a_forged_lock_is_refused_before_anything_moves(host, document, contents):
    document["models"][0]["files"]["../../etc/cron.d/x.json"] = document["models"][0]["files"]["adapter_config.json"]
    answer = admit(fill(host, contents), document, ok=False)
    assert "no safe file name" in answer["error"]["what"]
    assert len(list((host.store / "incoming").iterdir())) == len(contents)


def test_a_release_that_still_has_a_rotten_file_is_not_intact(host, document, lock, contents):
    """A repair that was killed between the new blob and the links: only blobs/ is hashed, so the links must be its own."""
    sha256 = next(name for name in contents if contents[name] == b"weights")
    host.incoming(contents)
    admit(host, document)
    (host.store / "current").write_text(f"{lock.id}\n")
    blob = host.store / "blobs" / sha256
    blob.unlink()
    blob.write_bytes(b"weights")
    assert [line for line in host.run("store", "verify", document=document)["wrong"] if "not the blob" in line]
    host.run("store", "ready", document=document)
    admit(host, document)
    assert host.run("store", "verify", document=document)["wrong"] == []
    assert (host.store / "state/recreate").exists(), "whoever mapped the old file must be recreated"


def test_a_sample_is_a_share_of_the_bytes_not_of_the_names():
    sizes = {**dict.fromkeys(map(str, range(99)), 1), "model": 10_000}
    for percent in (1, 50):
        chosen = verify.random_sample(list(sizes), sizes, percent)
        assert "model" in chosen and len(set(chosen)) == len(chosen)
    quarters = dict.fromkeys("abcd", 5)
    assert len(verify.random_sample(list(quarters), quarters, 50)) == 2


def test_admit_makes_the_folder_of_a_releases_state_again(host, document, lock, contents):
    """Goldens, overrides and the smoke test's result are written there next."""
    admit(fill(host, contents), document)
    shutil.rmtree(host.store / "state" / lock.id)
    admit(host, document)
    assert (host.store / "state" / lock.id).is_dir()


def test_what_is_linked_to_bytes_that_nobody_hashed_is_not_proven_any_more(host, document, lock, contents):
    """As in a store that was restored without its hard links: blobs/ has other files than the release, of the same size."""
    admit(fill(host, contents), document)
    stamp = host.store / "state" / lock.id / "verified-at"
    file = lock.models[1].files["model.safetensors"]
    admit(host, document)
    assert stamp.exists()
    (host.store / "blobs" / file.sha256).unlink()
    (host.store / "blobs" / file.sha256).write_bytes(b"x" * file.size)
    assert admit(host, document)["relinked"] and not stamp.exists()
    damaged = host.run("store", "verify", document=document)["damaged"]
    assert list(damaged) == [file.sha256] and not (host.store / "blobs" / file.sha256).exists(), "so it is pushed again"


def test_a_release_that_was_built_anew_is_mounted_anew_whatever_becomes_of_the_run(host, document, lock, contents):
    fill(host, contents)
    admit(host, document)
    mark, ref = host.store / "state/recreate", next((host.store / "releases" / lock.id).rglob("refs/main"))
    assert not mark.exists()
    ref.parent.chmod(0o755)
    ref.unlink()
    assert admit(host, document)["replaced"] and mark.exists(), "this run may end before it activates"


def test_what_is_broken_in_one_release_is_no_matter_of_another(host, document, lock, contents):
    fill(host, contents)
    admit(host, document)
    root = host.store / "releases" / lock.id
    blobs = next(root.rglob("blobs"))
    shutil.rmtree(blobs)
    later = json.loads(json.dumps(document))
    later["serve"]["dtype"] = "float32"
    assert admit(host, later)["built"]
    assert not list((host.store / "releases").glob(".relink*"))
    (root / "lock.json").chmod(0o644)
    (root / "lock.json").write_text("")
    later["serve"]["dtype"] = "float16"
    assert admit(host, later)["built"]
    assert admit(host, document)["replaced"] and blobs.is_dir() and (root / "lock.json").read_text(), "and it is mended"


def test_what_serves_is_mounted_anew_though_its_directory_was_gone(host, document, lock, contents):
    fill(host, contents)
    admit(host, document)
    root, mark = host.store / "releases" / lock.id, host.store / "state/recreate"
    for serves in (False, True):  # what does not serve is mounted nowhere
        for folder, _, _ in os.walk(root):
            os.chmod(folder, 0o755)
        shutil.rmtree(root)
        (host.store / "current").write_text(lock.id if serves else "0" * 64)
        assert admit(host, document)["built"] and mark.exists() is serves


@pytest.mark.parametrize("serves", [True, False])
def test_damage_in_another_release_leaves_the_service_alone(host, document, lock, contents, serves):
    admit(fill(host, contents), document)
    (host.store / "current").write_text(lock.id if serves else "0" * 64)
    if not serves:
        (host.store / "releases" / ("0" * 64)).mkdir()
        other = json.loads(json.dumps(document))
        other["serve"]["dtype"] = "float32"
        other["models"][0]["files"].pop("adapter_model.safetensors")
        current = parse_lock(json.dumps(other))
        admit(host, other)
        (host.store / "current").write_text(current.id)
    victim = document["models"][0]["files"]["adapter_model.safetensors"]["sha256"]
    (host.store / "blobs" / victim).write_bytes(b"Adapter")
    assert list(host.run("store", "verify", document=document)["damaged"]) == [victim]
    host.run("store", "ready", document=document)
    host.incoming({victim: contents[victim]})
    assert admit(host, document)["relinked"]
    assert (host.store / "state/recreate").exists() is serves


def another(document):
    other = json.loads(json.dumps(document))
    other["serve"]["dtype"] = "float32"
    return other


def test_the_lock_of_another_release_is_not_believed(host, document, lock, contents, monkeypatch):
    """Prune would delete what it does not name; a deploy would link what it names."""
    admit(fill(host, contents), document)
    other = parse_lock(json.dumps(another(document)))
    admit(host, another(document))
    path = host.store / "releases" / lock.id / "lock.json"
    path.chmod(0o644)
    mine = path.read_text()
    path.write_text((host.store / "releases" / other.id / "lock.json").read_text())
    for name in (
        "containers",
        "open_paths",
        "mounted_paths",
    ):  # what this machine's own processes have open is no matter here
        monkeypatch.setattr(uses, name, lambda *words: [])
    with pytest.raises(Refused, match=f"another release's lock.*found {other.short}") as no:
        prune.plan(str(host.store), 1, {})
    assert no.value.error["where"] == str(path) and releases.tree_of(str(host.store), lock.id) is None
    path.write_text(mine)
    assert len(prune.plan(str(host.store), 1, {}).releases) == 1 and releases.tree_of(str(host.store), lock.id)


def test_prune_refuses_where_what_serves_has_lost_its_directory(host, document, lock, contents, monkeypatch):
    """A container may have it mounted as it stands aside, and nobody knows its blobs."""
    admit(fill(host, contents), document)
    for name in ("containers", "open_paths", "mounted_paths"):
        monkeypatch.setattr(uses, name, lambda *words: [])
    (host.store / "current").write_text(f"{lock.id}\n")
    assert not prune.plan(str(host.store), 1, {}).blobs, "the control"
    root = host.store / "releases" / lock.id
    root.rename(root.with_name(f".{lock.id}.1.aside"))
    with pytest.raises(Refused, match="is missing, though it serves"):
        prune.plan(str(host.store), 1, {})
