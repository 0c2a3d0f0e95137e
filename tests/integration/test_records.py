"""What power cuts, full disks and people leave in a host's records: it is looked at, told, and never taken for order."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import time

import lease
import look
import prune
import pytest
import records
import store as proving
import switch
from release import Refused

pytestmark = pytest.mark.integration
NO_RECORD = ["", "nonsense", '"words"', "1", "null", "[]"]


@pytest.fixture
def store(tmp_path):
    (tmp_path / "state/one").mkdir(parents=True)
    return tmp_path


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


@pytest.mark.parametrize("text", [*NO_RECORD, '{"to": "x"}'])
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


def test_a_line_of_the_journal_that_was_cut_short_takes_no_other_with_it(store):
    host = records.Records(str(store))
    (store / "journal.jsonl").write_text('{"step": "unl')
    for step in ("begin", "drain"):
        host.journal(step)
    cut, *lines = (store / "journal.jsonl").read_text().splitlines()
    assert cut == '{"step": "unl' and [json.loads(line)["step"] for line in lines] == ["begin", "drain"]
