"""Fetch: the real huggingface_hub client against a Hub that misbehaves; each fault told apart, nothing unproven kept."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
import urllib.request

import pytest

from tasks.remote.common import files
from tasks.shared.lock import lock_text, parse_lock
from tasks.shared.names import COMMIT
from tests.integration.conftest import ADAPTER, BASE, BIG
from tests.lab import hub as stand_in
from tests.lab.hub_repo import commit, move

pytestmark = pytest.mark.integration
TOKEN = "hf_good_member"


def fetch(host, hub, verb, ok=True, token=None, deadline=60, xet=False, **more):
    document = {"token": token, "endpoint": hub["endpoint"], "xet": xet, **more}
    return host.run("fetch", verb, "--within", deadline, document=document, ok=ok)


def resolve(host, hub, **more):
    return fetch(host, hub, "resolve", models=[{"repo": ADAPTER, "revision": "main"}], **more)


@pytest.fixture
def locked(host, hub, document):
    answer = resolve(host, hub)
    copy = {**document, "models": answer["models"], "asked": answer["asked"]}
    return json.loads(lock_text(copy))


def blobs(host):
    return {path.name for path in (host.store / "blobs").iterdir()}


def test_an_adapter_brings_its_base_each_at_a_commit(host, hub):
    answer = resolve(host, hub)
    assert [(m["repo"], m["role"]) for m in answer["models"]] == [(BASE, "base"), (ADAPTER, "adapter")]
    assert all(COMMIT.fullmatch(model["commit"]) for model in answer["models"])
    assert set(answer["models"][1]["files"]) == {"adapter_config.json", "adapter_model.safetensors"}
    assert "checkpoint-10/optimizer.pt" in answer["left_out"][ADAPTER] and "modeling.py" in answer["left_out"][ADAPTER]


def test_a_download_brings_every_blob_and_a_second_one_asks_the_hub_nothing(host, hub, locked):
    lock = parse_lock(json.dumps(locked))
    assert fetch(host, hub, "download", lock=locked)["bytes"] == sum(lock.model_blobs().values())
    assert blobs(host) == set(lock.model_blobs())
    stand_in.LOG.clear()
    assert fetch(host, hub, "download", lock=locked)["files"] == 0
    assert stand_in.LOG == []


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_dropped_connection_is_tried_again(host, hub, locked, how):
    stand_in.FAULTS.update(drop=1 << 20, drop_by=how, drops=2)
    assert fetch(host, hub, "download", lock=locked)["files"] == 4
    assert stand_in.FAULTS["drops"] <= 0, "the fault never struck"


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_cdn_is_waited_for(host, hub, locked, status):
    stand_in.FAULTS.update(busy={"where": "cdn", "count": 2, "status": status, "after": 1})
    assert fetch(host, hub, "download", lock=locked)["files"] == 4
    assert stand_in.FAULTS["busy"]["count"] == 0, "the fault never struck"


@pytest.mark.parametrize("fault", ["corrupt", "truncate"])
def test_wrong_bytes_never_enter_the_store(host, hub, locked, fault):
    stand_in.FAULTS[fault] = "model.safetensors"
    answer = fetch(host, hub, "download", lock=locked, ok=False)
    victim = next(m for m in locked["models"] if m["repo"] == BASE)["files"]["model.safetensors"]["sha256"]
    assert "model.safetensors" in str(answer["error"]) or "does not answer" in str(answer["error"])
    assert victim not in blobs(host)
    stand_in.FAULTS.clear()
    fetch(host, hub, "download", lock=locked)
    assert victim in blobs(host)


def test_a_stalled_download_ends_at_the_deadline_and_keeps_what_is_whole(host, hub, locked):
    stand_in.FAULTS["stall"] = 1
    started = time.monotonic()
    answer = fetch(host, hub, "download", lock=locked, ok=False, deadline=8)
    assert "did not finish in time" in answer["error"]["what"] and time.monotonic() - started < 30
    kept = blobs(host)
    assert kept
    stand_in.FAULTS.clear()
    assert fetch(host, hub, "download", lock=locked)["files"] == 4 - len(kept)


def test_gated_without_a_token_without_access_and_with_it(host, hub):
    (hub["root"] / ADAPTER / "settings.json").write_text('{"gated": true}')
    none = resolve(host, hub, ok=False)["error"]
    assert "no token" in none["what"] and f"{hub['endpoint']}/{ADAPTER}" in none["next"]
    other = resolve(host, hub, ok=False, token="hf_good_stranger")["error"]
    assert "gated" in other["what"] and "lab-account" in other["found"]
    resolve(host, hub, token=TOKEN)


def test_a_bad_token_a_missing_repository_and_a_missing_revision_are_told_apart(host, hub):
    assert "refuses the token" in resolve(host, hub, ok=False, token="hf_bad")["error"]["what"]
    gone = fetch(host, hub, "resolve", ok=False, models=[{"repo": "docai/gone", "revision": "main"}])["error"]
    assert "does not exist" in gone["what"]
    old = fetch(host, hub, "resolve", ok=False, models=[{"repo": ADAPTER, "revision": "v9"}])["error"]
    assert "no such revision" in old["what"] and old["expected"] == "v9"


def test_a_deleted_commit_fails_only_what_still_lacks_it(host, hub, locked):
    stand_in.FAULTS["deleted"] = [model["commit"] for model in locked["models"]]
    assert "no such revision" in fetch(host, hub, "download", lock=locked, ok=False)["error"]["what"]
    stand_in.FAULTS.clear()
    fetch(host, hub, "download", lock=locked)
    stand_in.FAULTS["deleted"] = [model["commit"] for model in locked["models"]]
    assert fetch(host, hub, "download", lock=locked)["files"] == 0


def test_the_token_goes_to_the_hub_alone_and_on_no_disk(host, hub, locked):
    fetch(host, hub, "download", lock=locked, token=TOKEN)
    assert any(entry["authorization"] for entry in stand_in.LOG if not entry["cdn"])
    assert [entry for entry in stand_in.LOG if entry["cdn"]]
    assert not any(entry["authorization"] for entry in stand_in.LOG if entry["cdn"])
    found = subprocess.run(["grep", "-rl", TOKEN, host.root], capture_output=True, text=True).stdout
    assert found == ""
    (host.root / "planted").write_text(TOKEN)
    assert subprocess.run(["grep", "-rl", TOKEN, host.root], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", b'{"auto_map": {"AutoModel": "m.M"}}', "auto_map"),
        ("adapter_config.json", b'{"base_model_name_or_path": "./models/base"}', "names no Hub repository"),
        ("adapter_config.json", b"<html>", "is not JSON"),
    ],
)
def test_code_and_local_paths_are_refused_by_name(host, hub, name, content, says):
    commit(hub["root"], ADAPTER, {**hub["adapter"], name: content}, ["main"])
    answer = resolve(host, hub, ok=False)
    assert says in answer["error"]["what"] and name in answer["error"]["where"]


def test_weights_that_are_pickles_alone_are_refused(host, hub):
    commit(hub["root"], "docai/old", {"config.json": b"{}", "pytorch_model.bin": b"pickle"}, ["main"])
    answer = fetch(host, hub, "resolve", ok=False, models=[{"repo": "docai/old", "revision": "main"}])
    assert "pytorch_model.bin" in answer["error"]["found"]


@pytest.mark.parametrize("name", ["../../etc/cron.d/x.json", "a\x1b[2J.json", "-rf.json"])
def test_an_evil_name_refuses_the_repository(host, hub, name):
    stand_in.FAULTS["names"] = [name]
    error = resolve(host, hub, ok=False)["error"]
    assert "no safe file name" in error["what"] and "\x1b" not in error["where"]


def test_a_captive_portal_is_no_hub(host, hub):
    stand_in.FAULTS["portal"] = True
    answer = resolve(host, hub, ok=False, deadline=60)
    assert "does not answer as a Hub does" in answer["error"]["what"] or "did not finish" in answer["error"]["what"]


def test_a_second_fetch_says_who_holds_the_store(host, hub, locked):
    stand_in.FAULTS["stall"] = 5  # seconds a chunk: the first one is still at it when the second asks
    document = {"token": None, "endpoint": hub["endpoint"], "xet": False, "lock": locked}
    words = [sys.executable, str(host.tool), "fetch", "download", "--store", str(host.store), "--within", "20"]
    first = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )
    first.stdin.write(json.dumps(document))
    first.stdin.close()
    deadline = time.monotonic() + 20
    note = host.store / ".fetch.lock"
    while f"pid {first.pid} " not in (note.read_text() if note.exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    answer = fetch(host, hub, "download", lock=locked, ok=False)
    assert f"pid {first.pid}" in answer["error"]["found"]
    first.kill()
    first.wait()
    while files.is_locked(note):  # what it had started ends with it
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_failure_that_nobody_thought_of_is_one_answer(host, hub):
    """The work has a process of its own, which must not print an answer beside the program's."""
    request = json.dumps({"token": None, "endpoint": hub["endpoint"], "xet": False})  # no "models"
    words = [sys.executable, str(host.tool), "fetch", "resolve", "--store", str(host.store)]
    done = subprocess.run(words, input=request, capture_output=True, text=True, timeout=60)
    (answer,) = (json.loads(line) for line in done.stdout.splitlines() if line)
    assert done.returncode == 1 and not answer["ok"] and answer["error"]["what"].startswith("KeyError at fetch.py:")


def test_a_moved_branch_does_not_move_a_lock(host, hub, locked):
    new = commit(hub["root"], ADAPTER, {**hub["adapter"], "adapter_model.safetensors": b"version 2"}, [])
    move(hub["root"], ADAPTER, {"main": new})
    fetch(host, hub, "download", lock=locked)
    assert hashlib.sha256(b"adapter").hexdigest() in blobs(host)
    assert hashlib.sha256(b"version 2").hexdigest() not in blobs(host)


def test_too_little_space_is_said_before_the_first_byte(hub, host, locked, tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", host.store / "fetch"]).returncode:
        pytest.skip("needs mount, as root")
    subprocess.run(["umount", host.store / "fetch"], check=True)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small], check=True)
    try:
        (small / "blobs").mkdir()
        host.store = small
        stand_in.LOG.clear()
        answer = fetch(host, hub, "download", lock=locked, ok=False)
        assert "too little space" in answer["error"]["what"] and "free" in answer["error"]["found"]
        assert stand_in.LOG == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_the_hub_answers_at_all(hub):
    with urllib.request.urlopen(f"{hub['endpoint']}/api/models/{ADAPTER}") as answer:
        assert json.load(answer)["id"] == ADAPTER


@pytest.mark.parametrize("xet", [True, False])
def test_xet_brings_the_same_bytes_and_can_be_switched_off(host, hub, locked, cas, xet):
    stand_in.FAULTS["xet"] = cas
    stand_in.LOG.clear()
    fetch(host, hub, "download", lock=locked, xet=xet)
    assert hashlib.sha256(BIG).hexdigest() in blobs(host)
    by_http = [
        e for e in stand_in.LOG if e["cdn"] and e["path"].endswith("/model.safetensors") and e["method"] == "GET"
    ]
    assert bool(by_http) is not xet
    assert any("xet-read-token" in entry["path"] for entry in stand_in.LOG) is xet
    assert not any(path.is_symlink() for path in (host.store / "blobs").iterdir())
