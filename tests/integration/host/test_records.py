"""What power cuts, full disks and people leave in a host's records: it is looked at, told, and never taken for order."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import subprocess
import time

import pytest

from tasks.remote import inspect as look
from tasks.remote.host import engine, lease, prune, records, switch
from tasks.remote.host import store as proving
from tasks.shared.errors import Refused

pytestmark = pytest.mark.integration
NO_RECORD = ["", "nonsense", '"words"', "1", "null", "[]"]


@pytest.mark.parametrize("text", NO_RECORD)
@pytest.mark.parametrize("name", ["pending", "frozen"])
def test_a_record_that_counts_by_being_there_does_so_whatever_is_in_it(store, name, text):
    assert look.store(str(store))[name] is None
    (store / "state" / name).write_text(text)
    assert f"state/{name}" in look.store(str(store))[name]["why"]
    (store / "state" / name).write_text('{"why": "it is"}')
    assert look.store(str(store))[name] == {"why": "it is"}


@pytest.mark.parametrize("text", NO_RECORD)
def test_what_is_no_record_is_none(store, text):
    for name in ("verified-at", "smoke.json", "baked.json", "signed.json"):
        (store / "state/one" / name).write_text(text)
    (store / "journal.jsonl").write_text(f'{{"step": "confirm", "time": "then"}}\n{text}\n')
    seen = look.store(str(store))
    assert {seen["states"]["one"][key] for key in ("verified", "smoke", "baked", "signed")} == {None}
    assert seen["since"] == "then"


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


def test_a_tool_that_was_cut_short_is_brought_again(bastion):
    folder, name, whole = str(bastion.tool.parent), bastion.tool.name, bastion.tool.read_bytes()
    assert name in look.tools(folder)
    for broken in (whole[: len(whole) // 2], b"", whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:]):
        bastion.tool.write_bytes(broken)
        assert name not in look.tools(folder)
    type(bastion)(bastion.root)  # as it is brought to a host
    assert name in look.tools(folder)


def test_a_full_disk_names_the_file_and_stops_no_revert(store):
    os.symlink("/dev/full", store / "journal.jsonl")
    host = records.Records(str(store))
    with pytest.raises(OSError, match=r"No space left.*journal"):
        host.journal("switch")
    host.tell("withdrawn")


def test_what_a_drain_leaves_in_the_background_is_not_waited_for(tmp_path):
    started = time.monotonic()
    switch.command("drain", f"sleep 30 & echo $! > {tmp_path}/pid")
    assert time.monotonic() - started < 15
    os.kill(int((tmp_path / "pid").read_text()), 15)  # it lives


def test_a_drain_that_fails_or_hangs_says_so(monkeypatch):
    with pytest.raises(Refused, match="failed with code 7, found no balancer") as refused:
        switch.command("drain", "echo no balancer >&2; exit 7")
    assert json.dumps(refused.value.error)
    monkeypatch.setattr(switch, "COMMAND", 0.3)
    with pytest.raises(Refused, match="took longer than"):
        switch.command("drain", "sleep 30")


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_switch_that_was_killed_after_its_confirmation_is_recovered_forward(store, monkeypatch, confirmed):
    """Also one of settings alone, where `current` stays the same; and an older one's word in the journal is not its."""
    monkeypatch.setattr(switch, "revert", lambda records, intent: "withdrawn")
    host, stack = records.Records(str(store)), store / "stack"
    stack.mkdir()
    (stack / "o.yml").write_text("new settings")
    (store / "current").write_text("one\n")
    (store / "state/one/compose.confirmed.yaml").write_text("old settings")
    intent = {"from": "one", "to": "one", "previous": "none", "stack": str(stack), "override": "o.yml"}
    said = {"confirmed": True} if confirmed else {}
    (store / "state/pending").write_text(json.dumps({**intent, "project": "p", "service": "s", **said}))
    (store / "journal.jsonl").write_text('{"step": "confirm"}\n1\nnonsense\n{"step": "beg')
    assert switch.recover(host) == ("active" if confirmed else "withdrawn")
    settings = (store / "state/one/compose.confirmed.yaml").read_text()
    assert settings == ("new settings" if confirmed else "old settings")


GOLDENS = '{"classes": {"cpu": {"queries": ["one"], "vectors": {}}}}'


@pytest.mark.parametrize(
    "text", [*NO_RECORD, None, '{"classes": {}}', '{"classes": {"cpu": {"queries": []}}}', GOLDENS[:9]]
)
def test_a_probe_that_could_ask_nothing_is_refused_before_anything_is_switched(store, text):
    path = store / "state/one/goldens.json"
    path.write_text(GOLDENS)
    assert switch.goldens_of(str(store), "one", {"url": "x"}) == json.loads(GOLDENS)
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(Refused, match=r"goldens\.json"):
        switch.goldens_of(str(store), "one", {"url": "x"})
    switch.goldens_of(str(store), "one", None)  # no probe, nothing to be asked


@pytest.mark.parametrize("text", [*NO_RECORD, None])
def test_a_lease_whose_note_is_gone_is_still_held(store, text):
    if text is not None:
        (store / "lease.json").write_text(text)
    assert look.lease(str(store)) is None
    with open(store / ".lease.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert look.lease(str(store)) == {}
        with pytest.raises(Refused, match="has another lease"):
            lease.unlock(argparse.Namespace(store=str(store), id="x1", who="w"))


@pytest.mark.parametrize("text", [*NO_RECORD, '{"epoch": "x"}'])
def test_a_mangled_word_of_when_it_was_proven_is_none(store, text):
    (store / "state/one/verified-at").write_text(text)
    assert proving.proven(str(store), "one") is None and prune.order(str(store), "one") == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("verified", '{"at": "then", "epoch": "x"}'),
        ("verified", '{"at": "then", "epoch": NaN}'),
        ("verified", '{"at": 5, "epoch": 1}'),
        ("smoke", '{"ok": true, "outbound_attempts": 0, "cosine": {"mean": "x"}}'),
        ("smoke", '{"ok": true, "outbound_attempts": 0, "cosine": 5}'),
        ("smoke", '{"ok": true, "outbound_attempts": 0, "latency_ms": {"page": NaN}}'),
        ("smoke", '{"ok": true}'),
    ],
)
def test_a_record_whose_values_are_none_of_ours_is_none(store, name, text):
    for file, good in (
        ("verified-at", '{"at": "then", "epoch": 1}'),
        (
            "smoke.json",
            '{"ok": true, "outbound_attempts": 0, "cosine": null, "latency_ms": {"page": 1.5, "query": null}}',
        ),
    ):
        (store / "state/one" / file).write_text(good)
    assert look.store(str(store))["states"]["one"][name] is not None
    (store / "state/one" / {"verified": "verified-at", "smoke": "smoke.json"}[name]).write_text(text)
    assert look.store(str(store))["states"]["one"][name] is None


def test_a_release_that_was_proven_in_the_future_is_not_the_newest(store):
    path = store / "state/one/verified-at"
    for ahead, sound in ((0, True), (10 * 365 * 86400, False)):
        path.write_text(json.dumps({"at": "then", "epoch": time.time() + ahead}))
        assert (prune.order(str(store), "one") > 0) is sound


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
    def once(*words, env):
        with pytest.raises(Refused, match=r"is being smoke-tested.*found pid"):
            engine.candidate(str(store), "one", {"goldens.json": "the next run's"}, within=0)
        return dict(SMOKE), 0

    monkeypatch.setattr(engine, "once", once)
    engine.candidate(str(store), "one", {"goldens.json": "mine"})
    assert engine.smoke(argparse.Namespace(store=str(store), release="one"))["ok"]
    assert kept(store / "state/one")["goldens.json"] == "mine"
    assert engine.candidate(str(store), "one", {"goldens.json": "the next run's"})["folder"]


@pytest.mark.parametrize("after", range(5))
def test_a_passed_test_that_was_killed_while_that_was_noted_is_ended_by_the_next_run(store, monkeypatch, after):
    engine.candidate(str(store), "one", {"compose.override.yaml": "new", "goldens.json": "new"})
    monkeypatch.setattr(engine, "once", lambda *words, env: (dict(SMOKE), 0))
    moved, real = [], os.rename

    def rename(old, new):
        if "candidate" in old and not old.endswith(".new"):
            if len(moved) == after:
                raise KeyboardInterrupt
            moved.append(old)
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)
    with contextlib.suppress(KeyboardInterrupt):
        engine.smoke(argparse.Namespace(store=str(store), release="one"))
    monkeypatch.setattr(os, "rename", real)
    assert (store / "state/one/candidate").exists() is (after < 4)
    records.Records(str(store)).settle("one")
    found = kept(store / "state/one")
    assert found["goldens.json"] == found["compose.override.yaml"] == "new" and json.loads(found["smoke.json"])["ok"]
    assert not (store / "state/one/candidate").exists()


def test_a_test_that_did_not_pass_is_not_ended_as_if_it_had(store, monkeypatch):
    engine.candidate(str(store), "one", {"goldens.json": "new"})
    monkeypatch.setattr(engine, "once", lambda *words, env: (dict(SMOKE), 1))
    assert not engine.smoke(argparse.Namespace(store=str(store), release="one"))["ok"]
    records.Records(str(store)).settle("one")
    assert kept(store / "state/one") == {}


def test_a_smoke_test_that_fails_leaves_what_the_release_was_proven_with(store, monkeypatch):
    folder = store / "state/one"
    texts = {"compose.override.yaml": "new", "goldens.json": "new"}
    for name in (*texts, "smoke.json", "embeddings.json"):
        (folder / name).write_text('{"class": "old"}')
    before = kept(folder)
    args = argparse.Namespace(store=str(store), release="one")
    for answer, code in (({**SMOKE, "ok": False}, 1), (SMOKE, 1), ({**SMOKE, "ok": False}, 0)):
        engine.candidate(str(store), "one", texts)
        monkeypatch.setattr(engine, "once", lambda *words, env, found=(answer, code): (dict(found[0]), found[1]))
        assert not engine.smoke(args)["ok"]
        assert kept(folder) == before
        assert look.store(str(store))["states"]["one"]["candidate"], "so the next deploy tests it again"
        assert engine.embeddings(str(store), "one")["embeddings"] == {"class": "new"}, "to be looked at, and accepted"
    engine.candidate(str(store), "one", texts)
    monkeypatch.setattr(engine, "once", lambda *words, env: (dict(SMOKE), 0))
    assert engine.smoke(args)["ok"] and not look.store(str(store))["states"]["one"]["candidate"]
    after = kept(folder)
    assert {name: after[name] for name in texts} == texts and after.keys() == before.keys()
    assert json.loads(after["smoke.json"])["ok"] and "new" in after["embeddings.json"]


def test_the_smoke_test_reads_the_goldens_that_it_is_to_pass_with(store, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        engine,
        "docker",
        lambda *words, **more: seen.update(more) or subprocess.CompletedProcess([], 0, '{"ok": true}', ""),
    )
    args = argparse.Namespace(store=str(store), release="one", project="p", project_directory="d", file=[], within=1)
    engine.candidate(str(store), "one", {"goldens.json": "new"})
    monkeypatch.setattr(engine, "no_networks", lambda: None)
    engine.smoke(args)
    assert seen["env"]["HF_OFFLINE_CANDIDATE"] == f"{store}/state/one/candidate"


@pytest.mark.parametrize("name", ["lease.json", "lease.json.new"])
def test_a_store_that_cannot_be_written_gives_no_lease_and_says_so(store, capsys, name):
    (store / name).mkdir()
    args = argparse.Namespace(store=str(store), id="x1", who="w", release="r", why="y")
    assert lease.hold(args) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["where"] == str(store / name) and "Is a directory" in error["found"]
    assert error["next"] == "move that directory away, then the same again"


INSPECTED = {
    "NetworkSettings": {"Networks": {"stack_default": {"Aliases": ["search"]}, "front": {"Aliases": ["search", "s"]}}},
    "State": {"Pid": os.getpid()},
    "Mounts": [],
}


def test_a_container_that_was_cut_off_or_mounts_what_is_gone_is_told(store, monkeypatch):
    root = str(store / "releases/one")
    whole = {**INSPECTED, "Mounts": [{"Source": root, "Destination": "/models/hf"}]}
    mounted = "1 2 8:1 {} /models/hf ro - ext4 /dev/x ro\n3 2 0:5 / /proc rw - proc proc rw\n"
    monkeypatch.setattr(look, "read", lambda path: mounted.format("/models/releases/one"))
    front = {"name": "front", "external": True}
    config = {"services": {"search": {"networks": {"default": None, "front": {"aliases": ["s"]}}}, "bare": {}}}
    config |= {"networks": {"default": {"name": "stack_default"}, "front": front}}
    networks = look.wired(config, "search")
    assert networks == {"stack_default": ["search"], "front": ["s", "search"]} and look.wired(config, "bare") == {}
    assert look.torn(whole, str(store), networks) == []
    cut = {**whole, "NetworkSettings": {"Networks": {"front": {"Aliases": None}, "other": {}}}}
    said = ["is not on its network stack_default", "is not called s, search on its network front"]
    assert look.torn(cut, str(store), networks) == said
    assert look.torn(cut, str(store), {}) == [], "one with the host's network, or another container's"
    for gone in ("/models/releases/one//deleted", "/models/releases/.one.5.aside"):
        monkeypatch.setattr(look, "read", lambda path, gone=gone: mounted.format(gone))
        assert look.torn(whole, str(store), networks) == [f"has mounted what is no longer {root}"]
        strangers = {**whole, "Mounts": [{"Source": "/etc", "Destination": "/models/hf"}]}
        assert look.torn(strangers, str(store), networks) == [], "what the operator mounts is theirs"
    monkeypatch.setattr(look, "read", lambda path: None)
    assert look.torn(whole, str(store), networks) == [], "it has ended: that is told as that"


def test_a_line_of_the_journal_that_was_cut_short_takes_no_other_with_it(store):
    host = records.Records(str(store))
    (store / "journal.jsonl").write_text('{"step": "unl')
    for step in ("begin", "drain"):
        host.journal(step)
    cut, *lines = (store / "journal.jsonl").read_text().splitlines()
    assert cut == '{"step": "unl' and [json.loads(line)["step"] for line in lines] == ["begin", "drain"]
