"""What a host serves: drift is named, a space change is refused until the operator has said how, rollback knows where to go."""

from __future__ import annotations

import copy
import json

import pytest

from tasks.control import compose, settings
from tasks.control import drift as standing
from tasks.shared.errors import Refused
from tasks.shared.lock import lock_text, parse_lock
from tests.unit.control.test_preflight import SEEN

TOOL = "/srv/models/tool/tool-1.pyz"


@pytest.fixture
def wanted(values):
    return settings.check([("test", values)])


@pytest.fixture
def served(lock, wanted):
    """A host that serves the release, as look.py sees it."""
    seen = copy.deepcopy(SEEN)
    text = compose.override(lock, wanted, TOOL, True)
    about = {"override": text, "verified": {"epoch": 1, "at": "then"}, "smoke": {"ok": True, "cosine": {"mean": 1.0}}}
    seen["store"] |= {
        "blobs": lock.blobs(),
        "releases": [lock.id],
        "current": lock.id,
        "previous": None,
        "locks": {lock.id: lock_text(lock.document)},
        "states": {lock.id: about},
        "lease": None,
        "pending": None,
        "away": None,
        "lost": {},
        "switching": False,
        "recreate": False,
        "since": "then",
    }
    seen["stack"] = {"files": ["c.yml"], "override": "o.yml", "overrides": {"o.yml": text}, "project": "p"}
    seen["container"] = {
        "id": "1",
        "image": lock.image.ids[0],
        "state": "running",
        "health": "healthy",
        "release": lock.id,
        "torn": [],
        "mounts": {wanted.hf_home: f"{wanted.model_store}/releases/{lock.id}"},
        "process": compose.environment(lock, wanted),
    }
    return seen


def test_what_is_in_order_does_not_drift(served, wanted):
    assert standing.drift(served, wanted) == []


def test_each_drift_is_named(served, wanted, lock):
    for change, said in (
        (lambda s: s["store"]["blobs"].popitem(), "1 of its blobs missing"),
        (lambda s: s["stack"]["overrides"].update({"o.yml": "x"}), "override beside the stack"),
        (lambda s: s.update(container=None), "no container"),
        (lambda s: s.update(container=None, docker=None), "no Docker Engine answers"),
        (
            lambda s: s["container"].update(torn=["is not on its network n"]),
            "the service is not on its network n. Next",
        ),
        (lambda s: s["container"].update(state="exited", health=None), "the service is exited"),
        (lambda s: s["container"].update(image="sha256:0"), "another image"),
        (lambda s: s["container"].update(mounts={}), "not what is mounted"),
        (lambda s: s["container"]["process"].update(HF_HUB_OFFLINE="0"), "another environment: HF_HUB_OFFLINE"),
        (lambda s: s["store"].update(frozen={"why": "x"}), "is frozen"),
        (lambda s: s["store"].update(locks={}), "missing or not readable"),
        (lambda s: s["store"]["states"][lock.id].update(verified=None), "not as they were proven"),
        (lambda s: s["store"].update(away={"why": "x"}), "was not readmitted: x"),
        (lambda s: s["store"].update(lost={lock.id: ["a/b"]}), "1 files of what it mounts are gone or others: a/b"),
        (lambda s: s.update(signers=[["/x", 0, 0o100644]]), "what serves here has none"),
    ):
        seen = copy.deepcopy(served)
        change(seen)
        found = standing.drift(seen, wanted)
        assert len(found) == 1 and said in found[0], found


def test_bytes_are_hashed_again_before_a_switch_and_where_the_word_of_them_is_lost(served, wanted, lock):
    text = served["store"]["states"][lock.id]["override"]
    now = wanted.verify_max_age + 100.0
    assert not standing.unproven(served, wanted, lock, text, now)  # active, and once proven: tasks/verify.py's
    assert standing.unproven(served, wanted, lock, "other settings", now)
    assert not standing.stale(served, lock, wanted, now - 200)
    served["store"]["states"][lock.id]["verified"]["epoch"] = 2 * now
    assert standing.stale(served, lock, wanted, now - 200), "hashed while the host's clock was years ahead"
    served["store"]["states"][lock.id]["verified"] = None
    assert standing.unproven(served, wanted, lock, text, now)


def test_settings_that_were_staged_and_turned_down_are_neither_drift_nor_where_a_rollback_goes(served, wanted, lock):
    about = served["store"]["states"][lock.id]
    was, about["override"] = about["override"], about["override"].replace("HF_HUB_OFFLINE: '1'", "HF_HUB_OFFLINE: '0'")
    assert was != about["override"] and len(standing.drift(served, wanted)) == 2  # as of a host that keeps no record
    about["confirmed"] = was
    assert standing.drift(served, wanted) == []
    assert standing.target(served, wanted, lock.id)[1] == was


BARE = {"lock": None, "goldens": None}
SIGNED = {"lock": "a", "goldens": "b"}


@pytest.mark.parametrize(
    ("kept", "in_git", "staged"),
    [
        (None, BARE, True),
        (SIGNED, BARE, True),
        (SIGNED, SIGNED, True),
        (None, SIGNED, False),
        ({**SIGNED, "lock": "c"}, SIGNED, False),
        ({**SIGNED, "goldens": None}, SIGNED, False),
    ],
)
def test_a_host_that_lacks_the_signatures_in_git_is_staged_again(served, wanted, lock, kept, in_git, staged):
    served["docker"]["images"] = {lock.image.tag: lock.image.ids[0]}
    text = compose.override(lock, wanted, TOOL, True)
    served["store"]["states"][lock.id]["signed"] = kept
    assert standing.staged(served, lock, text, in_git, None) is staged
    assert standing.as_asked(served, wanted, lock, text, in_git, None, now=1) is staged


def test_a_signed_release_does_not_drift_where_signatures_are_asked_for(served, wanted, lock):
    served["signers"] = [["/x", 0, 0o100644]]
    served["store"]["states"][lock.id]["signed"] = SIGNED
    assert standing.drift(served, wanted) == []


def test_a_space_change_needs_the_operators_word(served, wanted, document):
    document["serve"]["dtype"] = "float32"
    new = parse_lock(json.dumps(document))
    old = parse_lock(served["store"]["locks"][served["store"]["current"]])
    assert standing.space_problem(served, old, wanted, lambda: False) == []
    assert "would mix them" in standing.space_problem(served, new, wanted, lambda: False)[0]
    assert standing.space_problem(served, new, wanted, lambda: True) == []
    for said in ({"embedding_space_change": "mixed-accepted"}, {"drain": "x", "readmit": "y"}):
        assert standing.space_problem(served, new, wanted.model_copy(update=said), lambda: False) == []
    assert standing.space_problem(served, new, wanted.model_copy(update={"drain": "x"}), lambda: False)


def test_a_space_that_cannot_be_read_is_not_taken_for_the_same(served, wanted, lock, document):
    served["store"]["locks"] = {lock.id: "{"}
    assert standing.space_of(served) == "unknown"
    document["serve"]["attention"] = "eager"
    other = parse_lock(json.dumps(document))
    assert "unknown" in standing.space_problem(served, other, wanted, lambda: False)[0]
    assert standing.space_problem(served, lock, wanted, lambda: False) == [], "a deploy of the same release repairs it"


def test_rollback_goes_to_the_previous_release_or_the_one_that_was_named(served, wanted, lock):
    with pytest.raises(Refused, match="nowhere to go"):
        standing.target(served, wanted, "")
    served["store"]["previous"] = lock.id
    assert standing.target(served, wanted, "")[0].id == lock.id
    assert standing.target(served, wanted, lock.id[:9])[0].id == lock.id
    with pytest.raises(Refused, match="is not one release"):
        standing.target(served, wanted, "0000")
    served["store"]["states"] = {}
    with pytest.raises(Refused, match="override"):
        standing.target(served, wanted, "")


@pytest.mark.parametrize("text", ["{{{: nonsense", "", "5", compose.MARKER, f"{compose.MARKER}\nservices: {{}}", "\0"])
def test_a_record_of_what_was_confirmed_that_is_none_of_ours_is_drift_and_no_target_and_comes_back(
    served, wanted, lock, text
):
    about = served["store"]["states"][lock.id]
    assert standing.active(served, wanted, lock, about["override"])
    about["confirmed"] = text
    assert not standing.active(served, wanted, lock, about["override"]), "so that a deploy writes it again"
    assert "no record of its override" in standing.drift(served, wanted)[-1]
    with pytest.raises(Refused, match="override"):
        standing.target(served, wanted, lock.id)


def test_one_wave_for_all_who_are_behind_mixes_nothing():
    fleet = dict.fromkeys("abcd", "old")
    assert not standing.together([["a"], ["b", "c", "d"]], fleet, "new")
    assert standing.together([["a", "b", "c", "d"]], fleet, "new")
    assert standing.together([["a"], ["b", "c", "d"]], {**fleet, "a": "new"}, "new"), "that wave ends the mix"
    assert standing.together([["a"], ["b", "c", "d"]], {**dict.fromkeys("abc", "new"), "d": "old"}, "new"), (
        "a host is back"
    )
    assert not standing.together([["a"], ["b", "c", "d"]], {"a": "old", "b": "new", "c": "new", "d": "old"}, "new")
    assert not standing.together([["a"], ["b", "c"]], {**fleet, "a": "new"}, "new"), "a host that is not in the plan"


def test_a_host_whose_goldens_are_not_those_of_git_is_staged_again(served, wanted, lock):
    text, in_git = served["store"]["states"][lock.id]["override"], {"lock": None, "goldens": None}
    served["docker"]["images"] = {lock.tag: lock.image.ids[0]}
    for kept, staged in (("ours", True), ("others", False), (None, False)):
        served["store"]["states"][lock.id]["goldens"] = kept
        assert standing.staged(served, lock, text, in_git, "ours") is staged
    assert standing.staged(served, lock, text, in_git, None), "none are made yet"


def test_a_host_whose_mounted_files_are_gone_is_staged_again(served, wanted, lock):
    served["docker"]["images"] = {lock.tag: lock.image.ids[0]}
    text, in_git = served["store"]["states"][lock.id]["override"], {"lock": None, "goldens": None}
    assert standing.staged(served, lock, text, in_git, None)
    served["store"]["lost"] = {lock.id: ["a/b"]}
    assert not standing.staged(served, lock, text, in_git, None)
    served["store"] |= {"lost": {"0" * 64: ["a/b"]}, "current": "0" * 64}
    assert standing.staged(served, lock, text, in_git, None), "another release's loss"
    served["store"]["locks"] = {lock.id: "{}"}
    assert not standing.staged(served, lock, text, in_git, None), "it is built by the lock that it has"


def test_a_host_whose_last_smoke_test_did_not_pass_is_staged_again(served, wanted, lock):
    served["docker"]["images"] = {lock.tag: lock.image.ids[0]}
    about, in_git = served["store"]["states"][lock.id], {"lock": None, "goldens": None}
    assert standing.staged(served, lock, about["override"], in_git, None)
    about["candidate"] = True
    assert not standing.staged(served, lock, about["override"], in_git, None)
    assert standing.drift(served, wanted) == [] and standing.target(served, wanted, lock.id), "what was proven stands"


def test_a_container_that_was_cut_off_is_not_what_was_asked_for(served, wanted, lock):
    text = served["store"]["states"][lock.id]["override"]
    assert standing.active(served, wanted, lock, text)
    served["container"]["torn"] = ["is not on its network n"]
    assert not standing.active(served, wanted, lock, text)


def test_a_host_that_was_not_readmitted_is_not_done(served, wanted, lock):
    text = served["store"]["states"][lock.id]["override"]
    assert standing.active(served, wanted, lock, text)
    served["store"]["away"] = {"why": "x"}
    assert not standing.active(served, wanted, lock, text)


def test_a_lease_without_its_note_is_a_lease():
    assert "lease.json is gone" in standing.leased({})


def test_a_service_that_crashes_in_a_loop_does_not_look_as_if_nothing_were(served, wanted):
    served |= {"gpus": None, "store_filesystem": {"free_bytes": 1}}
    assert standing.told(served, wanted)["container"] == "healthy"
    served["container"]["restarts"] = 8
    assert standing.told(served, wanted)["container"] == "healthy, 8 restarts"


def test_the_report_names_what_runs_and_not_what_the_record_says(served, wanted, lock):
    told = standing.told(served, wanted)
    assert (told["release"], told["from"], told["space"]) == (lock.id, lock.id, standing.embedding_space(lock))
    served["store"]["current"] = "0" * 64  # in the middle of a switch
    told = standing.told(served, wanted)
    assert (told["release"], told["space"], told["from_space"]) == (lock.id, standing.embedding_space(lock), "unknown")
    served["container"]["state"] = "exited"
    assert standing.told(served, wanted)["release"] is None


def test_what_changes_in_the_same_release_is_named(served, wanted, lock, values):
    other = settings.check([("test", {**values, "environment": {"A": "1"}})])
    text = compose.override(lock, wanted, TOOL, True)
    assert standing.changes(served, wanted, lock, text) == "its service is made anew"
    assert standing.changes(served, other, lock, compose.override(lock, other, TOOL, True)) == "environment: A"
    assert standing.changes(served, wanted, lock, text.replace(TOOL, "/other")) == "other settings"
    served["container"]["torn"] = ["is not on its network n"]
    assert standing.changes(served, wanted, lock, text).startswith("the service is not on its network n")
    served["store"]["current"] = "0" * 64
    assert standing.changes(served, wanted, lock, text) == ""
