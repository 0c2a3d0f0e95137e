"""What power cuts, full disks and people leave in a host's records: it is looked at, told, and never taken for order."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import subprocess
import time

import pytest

from tasks.remote.host import lease, one_off, prune, records, smoke_test
from tasks.remote.host.service import Place
from tasks.remote.host.switch import checks, revert, settle
from tasks.remote.host.switch.outcome import Outcome
from tasks.remote.host.switch.request import Request
from tasks.remote.inspect.release import state as inspect_state
from tasks.shared.errors import Refused

pytestmark = pytest.mark.integration
NO_RECORD = ["", "nonsense", '"words"', "1", "null", "[]"]


ODD = '{"from": 1, "to": "2", "stack": "3", "override": "4", "project": "5", "service": "6"}'


@pytest.mark.parametrize(
    "text", [*NO_RECORD, '{"to": "x"}', ODD, ODD.replace('"from": 1, "to": "2"', '"from": null, "to": 2')]
)
def test_a_pending_switch_that_nobody_can_read_stops_with_its_path_and_what_to_do(bastion, text):
    pending = bastion.store / "state/pending"
    (bastion.store / "releases").mkdir(exist_ok=True)
    pending.write_text(text)
    for words in (["prune", "plan", "--keep", "3"], ["switch", "recover"]):
        error = bastion.run(*words, document={}, ok=False)["error"]
        assert error["where"] == str(pending) and f"rm {pending}" in error["next"]
    assert pending.read_text() == text


def test_a_full_disk_names_the_file_and_stops_no_revert(store):
    os.symlink("/dev/full", store / "journal.jsonl")
    host = records.Records(str(store))
    with pytest.raises(OSError, match=r"No space left.*journal"):
        host.journal("switch")
    host.note("withdrawn")


def test_what_a_drain_leaves_in_the_background_is_not_waited_for(tmp_path):
    started = time.monotonic()
    settle.run_command("drain", f"sleep 30 & echo $! > {tmp_path}/pid")
    assert time.monotonic() - started < 15
    os.kill(int((tmp_path / "pid").read_text()), 15)  # it lives


def test_a_drain_that_fails_or_hangs_says_so(monkeypatch):
    with pytest.raises(Refused, match="failed with code 7, found no balancer") as refused:
        settle.run_command("drain", "echo no balancer >&2; exit 7")
    assert json.dumps(refused.value.error)
    monkeypatch.setattr(settle, "COMMAND", 0.3)
    with pytest.raises(Refused, match="took longer than"):
        settle.run_command("drain", "sleep 30")


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_switch_that_was_killed_after_its_confirmation_is_recovered_forward(store, monkeypatch, confirmed):
    """Also one of settings alone, where `current` stays the same; and an older one's word in the journal is not its."""
    monkeypatch.setattr(revert, "revert", lambda records, intent: Outcome("withdrawn"))
    host, stack = records.Records(str(store)), store / "stack"
    stack.mkdir()
    (stack / "o.yml").write_text("new settings")
    (store / "current").write_text("one\n")
    (store / "state/one/compose.confirmed.yaml").write_text("old settings")
    intent = {"from": "one", "to": "one", "previous": "none", "stack": str(stack), "override": "o.yml"}
    intent |= {"within": 1, "had_container": True, "had_override": True, "was_running": True, "was_healthy": True}
    said = {"confirmed": True} if confirmed else {}
    (store / "state/pending").write_text(json.dumps({**intent, "project": "p", "service": "s", **said}))
    (store / "journal.jsonl").write_text('{"step": "confirm"}\n1\nnonsense\n{"step": "beg')
    assert revert.recover(host) == Outcome("active" if confirmed else "withdrawn")
    settings = (store / "state/one/compose.confirmed.yaml").read_text()
    assert settings == ("new settings" if confirmed else "old settings")


GOLDENS = '{"classes": {"cpu": {"queries": ["one"], "vectors": {}}}}'


@pytest.mark.parametrize(
    "text", [*NO_RECORD, None, '{"classes": {}}', '{"classes": {"cpu": {"queries": []}}}', GOLDENS[:9]]
)
def test_a_probe_that_could_ask_nothing_is_refused_before_anything_is_switched(store, text):
    path = store / "state/one/goldens.json"
    path.write_text(GOLDENS)
    asked = Request(str(store), "one", Place("", "", "", ""), probe={"url": "x"})
    assert checks.read_goldens(asked) == json.loads(GOLDENS)
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(Refused, match=r"goldens\.json"):
        checks.read_goldens(asked)
    checks.read_goldens(dataclasses.replace(asked, probe=None))  # no probe, nothing to be asked


@pytest.mark.parametrize("text", [*NO_RECORD, None])
def test_a_lease_whose_note_is_gone_is_still_held(store, text):
    if text is not None:
        (store / "lease.json").write_text(text)
    with open(store / ".lease.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Refused, match="has another lease"):
            lease.unlock(str(store), "x1", "w")


@pytest.mark.parametrize("text", [*NO_RECORD, '{"epoch": "x"}'])
def test_a_mangled_word_of_when_it_was_proven_is_none(store, text):
    (store / "state/one/verified-at").write_text(text)
    assert records.Records(str(store)).verified_at("one") is None and prune.proven_at(str(store), "one") == 0


def test_a_release_that_was_proven_in_the_future_is_not_the_newest(store):
    path = store / "state/one/verified-at"
    for ahead, sound in ((0, True), (10 * 365 * 86400, False)):
        path.write_text(json.dumps({"at": "then", "epoch": time.time() + ahead}))
        assert (prune.proven_at(str(store), "one") > 0) is sound


ONE = one_off.OneOff("one", "p", "d", (), 1)
SMOKE = {
    "ok": True,
    "checks": [{"name": "n", "ok": True, "detail": ""}],
    "outbound_attempts": 0,
    "embeddings": {"class": "new"},
}


def kept(folder):
    """What a release was proven with."""
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file() and path.name[0] != "."}


def test_a_smoke_test_that_outlives_its_controller_passes_nobody_elses_files(store, monkeypatch):
    def run_once(*words, env):
        with pytest.raises(Refused, match=r"is being smoke-tested.*found pid"):
            smoke_test.candidate(str(store), "one", {"goldens.json": "the next run's"}, within=0)
        return dict(SMOKE), 0

    monkeypatch.setattr(smoke_test, "run_once", run_once)
    smoke_test.candidate(str(store), "one", {"goldens.json": "mine"})
    assert smoke_test.smoke(str(store), ONE)["ok"]
    assert kept(store / "state/one")["goldens.json"] == "mine"
    assert smoke_test.candidate(str(store), "one", {"goldens.json": "the next run's"})["folder"]


@pytest.mark.parametrize("after", range(5))
def test_a_passed_test_that_was_killed_while_that_was_noted_is_ended_by_the_next_run(store, monkeypatch, after):
    smoke_test.candidate(str(store), "one", {"compose.override.yaml": "new", "goldens.json": "new"})
    monkeypatch.setattr(smoke_test, "run_once", lambda *words, env: (dict(SMOKE), 0))
    moved, real = [], os.rename

    def rename(old, new):
        if "candidate" in old and not old.endswith(".new"):
            if len(moved) == after:
                raise KeyboardInterrupt
            moved.append(old)
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)
    with contextlib.suppress(KeyboardInterrupt):
        smoke_test.smoke(str(store), ONE)
    monkeypatch.setattr(os, "rename", real)
    assert (store / "state/one/candidate").exists() is (after < 4)
    records.Records(str(store)).settle("one")
    found = kept(store / "state/one")
    assert found["goldens.json"] == found["compose.override.yaml"] == "new" and json.loads(found["smoke.json"])["ok"]
    assert not (store / "state/one/candidate").exists()


def test_a_test_that_did_not_pass_is_not_ended_as_if_it_had(store, monkeypatch):
    smoke_test.candidate(str(store), "one", {"goldens.json": "new"})
    monkeypatch.setattr(smoke_test, "run_once", lambda *words, env: (dict(SMOKE), 1))
    assert not smoke_test.smoke(str(store), ONE)["ok"]
    records.Records(str(store)).settle("one")
    assert kept(store / "state/one") == {}


def test_a_smoke_test_that_fails_leaves_what_the_release_was_proven_with(store, monkeypatch):
    folder = store / "state/one"
    texts = {"compose.override.yaml": "new", "goldens.json": "new"}
    for name in (*texts, "smoke.json", "embeddings.json"):
        (folder / name).write_text('{"class": "old"}')
    before = kept(folder)
    for answer, code in (({**SMOKE, "ok": False}, 1), (SMOKE, 1), ({**SMOKE, "ok": False}, 0)):
        smoke_test.candidate(str(store), "one", texts)
        monkeypatch.setattr(
            smoke_test, "run_once", lambda *words, env, found=(answer, code): (dict(found[0]), found[1])
        )
        assert not smoke_test.smoke(str(store), ONE)["ok"]
        assert kept(folder) == before
        assert inspect_state(str(folder)).has_candidate, "so the next deploy tests it again"
        assert smoke_test.embeddings(str(store), "one")["embeddings"] == {"class": "new"}, (
            "to be looked at, and accepted"
        )
    smoke_test.candidate(str(store), "one", texts)
    monkeypatch.setattr(smoke_test, "run_once", lambda *words, env: (dict(SMOKE), 0))
    assert smoke_test.smoke(str(store), ONE)["ok"] and not inspect_state(str(folder)).has_candidate
    after = kept(folder)
    assert {name: after[name] for name in texts} == texts and after.keys() == before.keys()
    assert json.loads(after["smoke.json"])["ok"] and "new" in after["embeddings.json"]


def test_the_smoke_test_reads_the_goldens_that_it_is_to_pass_with(store, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        one_off,
        "run_docker",
        lambda *words, **more: seen.update(more) or subprocess.CompletedProcess([], 0, '{"ok": true}', ""),
    )
    smoke_test.candidate(str(store), "one", {"goldens.json": "new"})
    monkeypatch.setattr(one_off, "remove_networks", lambda: None)
    smoke_test.smoke(str(store), ONE)
    assert seen["env"]["HF_OFFLINE_CANDIDATE"] == f"{store}/state/one/candidate"


@pytest.mark.parametrize("name", ["lease.json", "lease.json.new"])
def test_a_store_that_cannot_be_written_gives_no_lease_and_says_so(store, capsys, name):
    (store / name).mkdir()
    assert lease.hold(str(store), lease.Wanted(id="x1", who="w", release="r", why="y")) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["where"] == str(store / name) and "Is a directory" in error["found"]
    assert error["next"] == "move that directory away, then the same again"


def test_a_line_of_the_journal_that_was_cut_short_takes_no_other_with_it(store):
    host = records.Records(str(store))
    (store / "journal.jsonl").write_text('{"step": "unl')
    for step in ("begin", "drain"):
        host.journal(step)
    cut, *lines = (store / "journal.jsonl").read_text().splitlines()
    assert cut == '{"step": "unl' and [json.loads(line)["step"] for line in lines] == ["begin", "drain"]
