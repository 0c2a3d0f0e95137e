"""What the controller makes of a host's answers to a switch."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import pytest

from tasks.control import settings
from tasks.control import ssh as fleet
from tasks.control import tool as calls
from tasks.control.operations import leasing, switching
from tasks.control.reporting import recorder as report
from tasks.shared.errors import Refused
from tasks.shared.spaces import embedding_space

OLD = "0" * 64
AWAITING = {"ok": True, "state": "awaiting", "token": "1"}
AWAY = {"ok": False, "state": "active, not readmitted", "error": {"where": "readmit", "what": "failed with code 1"}}
LOST = {"ok": False, "answered": False, "error": {"where": "gpu1", "what": "`switch confirm` gave no answer"}}


class Host:
    name = "gpu1"

    def log_styled(self, *words, **more):
        pass

    noop = log_styled


@pytest.fixture
def known(monkeypatch, values):
    """What a run knows of a host that serves an old release."""
    monkeypatch.setattr(report, "RESULTS", {})
    seen = {"store": {"switching": False, "current": OLD, "previous": None}, "stack": {"override": "o", "project": "p"}}
    report.record("gpu1", settings=settings.check([("x", values)]), seen=seen, release=OLD, space="old", state="ready")
    return report.RESULTS["gpu1"]


@pytest.fixture
def answers(monkeypatch, known, lock):
    """answers(first, …): a switch on a host that answers so; of the new connections it takes none of the first `early`,
    the `taken` after them, and no more -> success."""

    def switch(*given, taken=99, early=0):
        said, connections = iter(given), iter([*([False] * early), *([True] * taken)])
        monkeypatch.setattr(switching, "call", lambda *words, **more: dict(next(said)))

        @contextlib.contextmanager
        def fresh(target):
            if not next(connections, False):
                raise Refused("gpu1", "takes no new connection", next="it puts the old release back by itself")
            yield

        monkeypatch.setattr(fleet, "fresh", fresh)
        return switching.switch(Host(), known["settings"], lock, "", why="deploy")

    return switch


def test_a_container_that_was_cut_off_is_made_anew(monkeypatch, known, lock):
    asked = []
    monkeypatch.setattr(switching, "call", lambda *words, **more: asked.append(more) or {"state": "withdrawn"})
    for container in (None, {"torn": []}, {"torn": ["is not on its network n"]}):
        known["seen"]["container"] = container
        switching.switch(Host(), known["settings"], lock, "", why="deploy")
    assert [more["recreate"] for more in asked] == [False, False, True]


def row(known):
    return known["state"], known["release"], known["space"]


def test_a_confirmed_switch_serves_the_new_release(answers, known, lock):
    assert answers(AWAITING, {"ok": True, "state": "active", "cosine": 0.999})
    assert row(known) == ("active", lock.id, embedding_space(lock)) and known["confirmed"]
    assert known["served_cosine"] == 0.999


def test_a_host_that_was_not_readmitted_serves_the_new_release_all_the_same(answers, known, lock):
    assert not answers(AWAITING, AWAY)
    assert row(known) == ("active, not readmitted", lock.id, embedding_space(lock)) and "confirmed" not in known


def test_a_host_that_withdrew_serves_the_old_release_and_of_a_frozen_one_nothing_is_claimed(answers, known):
    assert not answers({"ok": False, "state": "withdrawn", "error": {}})
    assert row(known) == ("withdrawn", OLD, "old")
    assert not answers(AWAITING, {"ok": False, "state": "frozen", "error": {}})
    assert row(known) == ("frozen", None, "unknown")


def test_a_new_connection_that_fails_is_tried_once_more(answers, known, lock):
    assert answers(AWAITING, {"ok": True, "state": "active"}, early=1) and known["release"] == lock.id


def test_an_answer_that_is_lost_is_asked_for_again(answers, known, lock):
    assert answers(AWAITING, LOST, {"ok": True, "state": "active"}) and known["release"] == lock.id


def test_after_the_confirmation_nobody_says_that_the_old_release_comes_back(answers, known):
    assert not answers(AWAITING, LOST, taken=1)
    assert row(known) == ("unknown", None, "unknown")
    assert "back by itself" not in known["why"].partition("found")[0] and known["why"].endswith("then the same again")
    assert not answers(AWAITING, LOST, LOST) and known["state"] == "unknown"


def test_a_host_that_takes_no_new_connection_at_all_goes_back(answers, known):
    assert not answers(AWAITING, taken=0)
    assert row(known) == ("unknown", None, "unknown") and "takes no new connection" in known["why"]


def test_of_a_switch_that_nobody_answered_nothing_is_claimed(answers, known):
    assert not answers(LOST)
    assert row(known) == ("unknown", None, "unknown")
    assert not answers({"ok": False, "error": {"where": "x", "what": "is frozen"}}), (
        "the host's own no, before it began"
    )
    assert known["state"] == "failed"


def withdrawn(monkeypatch, known, lock, *answers, failed=frozenset({"gpu2"}), hosts=("gpu1",)):
    report.record("gpu1", state="active", release=lock.id, switched=True)
    said = iter([AWAITING, *answers])
    monkeypatch.setattr(switching, "host", Host())
    monkeypatch.setattr(fleet, "failed", lambda: failed)
    monkeypatch.setattr(fleet, "fresh", lambda target: contextlib.nullcontext())
    monkeypatch.setattr(switching, "put", lambda *words: True)
    monkeypatch.setattr(switching, "call", lambda *words, **more: dict(next(said)))
    old = SimpleNamespace(id=OLD, short=OLD[:12])
    monkeypatch.setattr(switching.standing, "target", lambda *words: (old, "override"))
    monkeypatch.setattr(switching, "embedding_space", lambda lock: "old")
    for command in switching.withdraw._inner(settings=known["settings"], hosts=hosts):
        assert not command.function(None, Host()), "the rollout failed, whatever becomes of this host"
    return row(known)


def test_a_host_that_is_taken_back_serves_the_old_release(monkeypatch, known, lock):
    assert withdrawn(monkeypatch, known, lock, {"ok": True, "state": "active"}) == ("withdrawn", OLD, "old")
    assert known["phases"][-1]["ok"], "and its phase did what it is for"


def test_so_does_one_whose_readmit_fails_on_the_way_back(monkeypatch, known, lock):
    assert withdrawn(monkeypatch, known, lock, AWAY) == ("withdrawn, not readmitted", OLD, "old")
    assert "failed with code 1" in known["why"]


def test_one_that_does_not_go_back_is_told(monkeypatch, known, lock):
    state, serves, _ = withdrawn(monkeypatch, known, lock, {"ok": False, "state": "withdrawn", "error": {}})
    assert (state, serves) == ("not withdrawn", lock.id)


def test_a_host_that_cannot_be_looked_at_is_refused_in_words(known):
    known["seen"] = None
    with pytest.raises(Refused, match="gpu1: could not be looked at"):
        calls.ensure_tool(Host())


@pytest.fixture
def stays(monkeypatch, known, lock):
    """stays(answer): a host that was switched and confirmed, asked whether it serves on -> what was asked, or None."""
    monkeypatch.setattr(switching, "host", Host())
    monkeypatch.setattr(switching, "state", SimpleNamespace(is_executing=True))
    report.record("gpu1", lease=leasing.lease_id())
    monkeypatch.setattr(fleet.leases, "held", lambda target: True)

    def ask(answer):
        asked = []
        monkeypatch.setattr(switching, "call", lambda *words, **more: asked.append(more) or answer)
        for command in switching.stay._inner(settings=known["settings"]):
            assert command.function(None, Host()), "to pyinfra it is a host that can still be taken back"
        return asked[0] if asked else None

    return ask


def test_a_host_that_fell_after_its_confirmation_is_a_failed_one_that_can_be_taken_back(stays, answers, known, lock):
    assert stays({"ok": True}) is None, "not confirmed yet"
    assert answers(AWAITING, {"ok": True, "state": "active", "container": "c1", "started": "then"})
    asked = stays({"ok": True})
    assert asked["release"] == lock.id and json.loads(asked["document"])["container"] == "c1"
    assert row(known)[:2] == ("active", lock.id) and not known.get("fell")
    stays({"ok": False, "error": {"where": "backend", "what": "did not stay up"}})
    assert row(known) == ("failed", None, "unknown") and known["fell"] and not known["confirmed"]
    assert known["phases"][-1]["phase"] == "stay" and not known["phases"][-1]["ok"]
    assert known["why"] == "does not serve on as it was confirmed: backend: did not stay up"
    assert stays({"ok": True}) is None, "once is enough"


def test_a_host_that_needed_no_switch_is_asked_too_unless_the_run_changes_nothing(stays, known, lock):
    seen = {"container": {"id": "c1", "since": "then", "image": "i"}, "stack": {"networks": {"front": ["search"]}}}
    switching.confirmed(Host(), lock, "", switching.looked(seen), "unchanged")
    asked = stays({"ok": True})
    wanted = {"container": "c1", "started": "then", "networks": ["front"], "expect_env": {}}
    assert asked["release"] == lock.id and json.loads(asked["document"]) == wanted
    report.record("gpu1", lease=None)
    assert stays({"ok": True}) is None


def test_a_host_that_cannot_be_asked_is_asked_again_and_then_unknown(monkeypatch, stays, known, lock):
    switching.confirmed(Host(), lock, "", {}, "unchanged")
    said = iter([LOST, {"ok": True}])
    monkeypatch.setattr(switching, "call", lambda *words, **more: next(said))
    (command,) = switching.stay._inner(settings=known["settings"])
    assert command.function(None, Host()) and known["state"] == "unchanged"
    stays(LOST)
    assert row(known) == ("unknown", None, "unknown") and known["fell"]


def test_a_host_that_is_not_readmitted_can_be_taken_back(monkeypatch, answers, known, lock):
    assert not answers(AWAITING, AWAY) and known["fell"]
    back = withdrawn(monkeypatch, known, lock, {"ok": True, "state": "active"}, failed={"gpu1"}, hosts=[])
    assert back == ("withdrawn", OLD, "old") and known["taken_back"], "and from here pyinfra leaves it out"
    assert known["fell"], "while others ask whether somebody failed"
    assert not list(switching.withdraw._inner(settings=known["settings"], hosts=["gpu1"])), "once is enough"
