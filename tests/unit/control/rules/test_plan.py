"""HostPlan: the one answer to what a deploy does on a host, and why. Every reason alone is enough, and none is nothing."""

from __future__ import annotations

import pytest

from tasks.control.rules import compose
from tasks.control.rules.plan import (
    is_stale,
    is_unproven,
    plan_host,
    rollback_target,
    what_changes,
    why_not_active,
    why_not_staged,
)
from tasks.shared.errors import Refused
from tasks.shared.lock import lock_text, parse_lock
from tests.unit.control.facts import HASHED, NOW, OVERRIDE, TOOL, changed, fit_facts, release_state, serving_facts

BARE = {"lock": None, "goldens": None}
SIGNED = {"lock": "a", "goldens": "b"}
GOLDENS = "f" * 64


@pytest.fixture
def served(lock, settings):
    return serving_facts(lock, settings, goldens=GOLDENS)


@pytest.fixture
def override(lock, settings):
    return compose.override(lock, settings, TOOL, True)


@pytest.fixture
def planned(lock, settings, override):
    def plan(facts, goldens=GOLDENS, git=BARE, now=NOW, **more):
        return plan_host(facts, settings.model_copy(update=more), lock, override, git, goldens, now)

    return plan


@pytest.fixture
def staged(lock, override):
    """Whether these facts are of a host that has proven the release, with these signatures and goldens in git."""

    def is_staged(facts, git=BARE, goldens=GOLDENS):
        return why_not_staged(facts, lock, override, git, goldens) == []

    return is_staged


@pytest.fixture
def active(lock, settings, override):
    return lambda facts: why_not_active(facts, settings, lock, override) == []


# --------------------------------------------------------------------------------------------------- the whole plan


def test_a_host_that_serves_the_release_has_nothing_to_do(served, planned):
    plan = planned(served)
    assert plan.has_nothing_to_do and not (plan.stage or plan.switch or plan.lease)
    assert plan.stage_why == plan.switch_why == () and plan.push == {} and plan.describe() == ""


def test_an_empty_host_gets_everything(planned, lock):
    plan = planned(fit_facts())
    assert plan.stage and plan.switch and plan.lease and plan.smoke and plan.load and not plan.has_nothing_to_do
    assert plan.push == lock.blobs()
    done = "hash what is there, push 1.7 kB, load the image, smoke test, switch"
    assert plan.describe() == f"{done} (8 blobs are missing; the release is not built)"


def test_an_old_hash_is_no_work_where_the_proven_release_serves(served, planned, settings):
    later = HASHED + settings.verify_max_age + 100
    assert planned(served, now=later).has_nothing_to_do, "lease included: tasks/verify.py looks after it"
    full = planned(served, now=later, verify="full")
    assert full.verify and full.stage and full.lease and not full.switch and not full.has_nothing_to_do


@pytest.mark.parametrize(
    ("path", "value"), [("store.pending", {"to": "x"}), ("store.damaged", {"RELEASE": ["a"]}), ("store.recreate", True)]
)
def test_an_old_hash_is_taken_again_where_anything_is_to_be_done(served, planned, settings, lock, path, value):
    if path == "store.damaged":
        value = {lock.id: ["a"]}
    plan = planned(changed(served, path, value), now=HASHED + settings.verify_max_age + 100)
    assert plan.verify and plan.lease


def test_a_host_that_somebody_holds_is_asked_who_that_is_though_it_needs_nothing(served, planned):
    plan = planned(changed(served, "store.lease", {"id": "x1"}))
    assert plan.lease and not plan.stage and not plan.switch and not plan.has_nothing_to_do


def test_a_switch_alone_needs_no_smoke_test(served, planned):
    plan = planned(changed(served, "container.environment.HF_HUB_OFFLINE", "0"))
    assert plan.switch and plan.lease and not plan.stage and not plan.smoke
    assert plan.switch_why == ("the process has another environment: HF_HUB_OFFLINE",)


def test_a_container_that_was_detached_is_recreated(served, planned):
    plan = planned(changed(served, "container.detached", ["is not on its network n"]))
    assert plan.switch and plan.recreate
    assert plan.describe() == "switch to a new container (the service is not on its network n)"
    assert not planned(served).recreate


def test_only_what_the_host_lacks_is_pushed(served, planned, lock):
    layer = lock.image.layers[0].sha256
    plan = planned(changed(served, "store.blobs", {n: s for n, s in lock.blobs().items() if n != layer}))
    assert plan.push == {layer: 1000} and plan.stage_why == ("1 blobs are missing",)


# ---------------------------------------------------------------------------------------------------------- staged


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("store.blobs", {}, "8 blobs are missing"),
        ("store.damaged", {"RELEASE": ["a/b"]}, "files of the release are missing or replaced"),
        ("store.releases", [], "the release is not built"),
        ("store.releases", None, "the release is not built"),
        ("store.locks", {"RELEASE": "{}"}, "the release is not built"),
        ("store.recreate", True, "its container must be recreated"),
        ("store.states.RELEASE.verified", None, "never hashed here"),
        ("store.states.RELEASE.smoke", None, "it has not run a smoke test"),
        ("store.states.RELEASE.smoke.ok", False, "its last smoke test did not pass"),
        ("store.states.RELEASE.has_candidate", True, "its last smoke test did not pass"),
        ("store.states.RELEASE.override", "x", "tested with other settings"),
        ("store.states.RELEASE.goldens", None, "tested against other goldens"),
        ("store.states.RELEASE.goldens", "others", "tested against other goldens"),
        ("docker.images", {}, "its image is not in the engine"),
        ("docker", None, "its image is not in the engine"),
    ],
)
def test_each_lack_alone_stages_a_host_again(served, staged, planned, lock, path, value, why):
    assert staged(served)
    if isinstance(value, dict):
        value = {key.replace("RELEASE", lock.id): each for key, each in value.items()}
    odd = changed(served, path.replace("RELEASE", lock.id), value)
    assert not staged(odd)
    plan = planned(odd)
    assert [reason for reason in plan.stage_why if why in reason] == list(plan.stage_why) != []
    assert plan.smoke and plan.lease


def test_a_release_without_goldens_in_git_is_not_staged(served, staged):
    assert staged(served) and not staged(served, goldens=None)


def test_another_releases_damage_and_loss_are_not_this_ones(served, staged):
    other = changed(changed(served, "store.damaged", {"0" * 64: ["a/b"]}), "store.current", "0" * 64)
    assert staged(other)


@pytest.mark.parametrize(
    ("kept", "in_git", "good"),
    [
        (None, BARE, True),
        (SIGNED, BARE, True),
        (SIGNED, SIGNED, True),
        (None, SIGNED, False),
        ({**SIGNED, "lock": "c"}, SIGNED, False),
        ({**SIGNED, "goldens": None}, SIGNED, False),
    ],
)
def test_a_host_that_lacks_the_signatures_in_git_is_staged_again(served, staged, planned, lock, kept, in_git, good):
    facts = changed(served, f"store.states.{lock.id}.signatures", kept)
    assert staged(facts, git=in_git) is good
    assert planned(facts, git=in_git).has_nothing_to_do is good


def test_online_a_host_without_its_volume_is_staged_again(document, settings):
    document["serve"]["delivery"] = "online"
    lock = parse_lock(lock_text(document))
    wanted = settings.model_copy(update={"delivery": "online"})
    override = compose.override(lock, wanted, TOOL, True)
    facts = serving_facts(lock, wanted, goldens=GOLDENS)
    assert why_not_staged(facts, lock, override, BARE, GOLDENS) == ["its volume is missing"]
    there = changed(facts, "docker.volumes", [lock.volume])
    assert why_not_staged(there, lock, override, BARE, GOLDENS) == []


def test_baked_the_image_in_the_engine_must_be_the_one_that_was_baked_here(document, settings):
    document["serve"] |= {"delivery": "bake", "hf_home": settings.hf_home}
    lock = parse_lock(lock_text(document))
    wanted = settings.model_copy(update={"delivery": "bake"})
    override = compose.override(lock, wanted, TOOL, True)
    facts = changed(serving_facts(lock, wanted, goldens=GOLDENS), "docker.images", {lock.tag: "sha256:baked"})
    assert why_not_staged(facts, lock, override, BARE, GOLDENS) == ["its image is not in the engine"]
    here = changed(facts, f"store.states.{lock.id}.baked", {"config": "sha256:baked", "manifest": "sha256:other"})
    assert why_not_staged(here, lock, override, BARE, GOLDENS) == []


def test_bytes_are_hashed_again_before_a_switch_and_where_the_word_of_them_is_lost(served, settings, lock, override):
    now = HASHED + settings.verify_max_age + 100
    assert is_stale(served, lock, settings, now)
    assert not is_unproven(served, settings, lock, override, now)  # active, and once proven: tasks/verify.py's
    assert is_unproven(served, settings, lock, "other settings", now)
    assert not is_stale(served, lock, settings, now - 200)
    ahead = changed(served, f"store.states.{lock.id}.verified.epoch", 2 * now)
    assert is_stale(ahead, lock, settings, now - 200), "hashed while the host's clock was years ahead"
    lost = changed(served, f"store.states.{lock.id}.verified", None)
    assert is_unproven(lost, settings, lock, override, now)
    broken = changed(served, "store.damaged", {lock.id: ["a"]})
    assert is_unproven(broken, settings, lock, override, now - 200), "a fresh hash, and a file that is not the store's"


# ---------------------------------------------------------------------------------------------------------- active


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("store.current", "0" * 64, "serves 000000000000"),
        ("store.current", None, "serves nothing"),
        ("store.pending", {"to": "x"}, "an earlier switch is not finished"),
        ("store.not_readmitted", {"why": "x"}, "was not readmitted"),
        ("store.recreate", True, "its container must be recreated"),
        ("stack.overrides", {}, "the override beside the stack is another one"),
        ("stack.overrides", {OVERRIDE: "x"}, "the override beside the stack is another one"),
        ("stack", None, "the override beside the stack is another one"),
        ("store.states.RELEASE.confirmed", "x", "was confirmed with other settings"),
        ("container.release", None, "its container is of another release"),
        ("container.release", "0" * 64, "its container is of another release"),
        ("container.detached", ["is not on its network n"], "the service is not on its network n"),
        ("container.image", "sha256:0", "the service runs another image"),
        ("container.state", "exited", "the service is exited"),
    ],
)
def test_each_reason_alone_makes_a_host_be_switched_again(served, active, planned, lock, path, value, why):
    assert active(served)
    odd = changed(served, path.replace("RELEASE", lock.id), value)
    assert not active(odd)
    plan = planned(odd)
    assert len(plan.switch_why) == 1 and why in plan.switch_why[0], plan.switch_why
    assert plan.switch and plan.lease and not plan.has_nothing_to_do


def test_a_host_that_keeps_no_record_of_its_confirmation_is_active_by_what_runs(served, active, lock):
    assert active(changed(served, f"store.states.{lock.id}.confirmed", None))


@pytest.mark.parametrize("text", ["{{{: nonsense", "", "5", compose.MARKER, f"{compose.MARKER}\nservices: {{}}", "\0"])
def test_a_record_of_what_was_confirmed_that_is_none_of_ours_is_no_target_and_comes_back(
    served, active, settings, lock, text
):
    odd = changed(served, f"store.states.{lock.id}.confirmed", text)
    assert not active(odd), "so that a deploy writes it again"
    with pytest.raises(Refused, match="override"):
        rollback_target(odd, settings, lock.id)


def test_what_changes_in_the_same_release_is_named(served, settings, lock, override):
    other = settings.model_copy(update={"environment": {"A": "1"}})
    assert what_changes(served, settings, lock, override) == "its service is recreated"
    assert what_changes(served, other, lock, compose.override(lock, other, TOOL, True)) == "environment: A"
    assert what_changes(served, settings, lock, override.replace(TOOL, "/other")) == "other settings"
    detached = changed(served, "container.detached", ["is not on its network n"])
    assert what_changes(detached, settings, lock, override).startswith("the service is not on its network n")
    assert what_changes(changed(served, "store.current", "0" * 64), settings, lock, override) == ""


# -------------------------------------------------------------------------------------------------------- rollback


def test_rollback_goes_to_the_previous_release_or_the_one_that_was_named(served, settings, lock):
    with pytest.raises(Refused, match="nowhere to go"):
        rollback_target(served, settings, "")
    has = changed(served, "store.previous", lock.id)
    assert rollback_target(has, settings, "")[0].id == lock.id
    assert rollback_target(has, settings, lock.id[:9])[0].id == lock.id
    with pytest.raises(Refused, match="matches no release"):
        rollback_target(has, settings, "0000")
    with pytest.raises(Refused, match="override"):
        rollback_target(changed(has, "store.states", {}), settings, "")
    with pytest.raises(Refused, match="lock"):
        rollback_target(changed(has, "store.locks", {}), settings, "")


def test_rollback_takes_no_beginning_that_two_releases_share(served, settings, lock):
    twin = lock.id[:20] + "0" * 44
    has = changed(changed(served, "store.releases", [lock.id, twin]), f"store.states.{twin}", release_state("x"))
    with pytest.raises(Refused, match="matches no release"):
        rollback_target(has, settings, lock.id[:9])
    assert rollback_target(has, settings, lock.id[:30])[0].id == lock.id
