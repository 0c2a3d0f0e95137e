"""Preflight's rules: a fit host has no complaints; each lack is named with its fix, all at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.control.rules import compose
from tasks.control.rules.preflight import (
    MARGIN,
    fits_drive,
    missing,
    part_sizes,
    problems_of_bastion,
    problems_of_gpu_host,
    python_problem,
    unsigned,
    unwritable,
)
from tasks.shared.facts import Gpu
from tasks.shared.signatures import SIGNERS
from tests.unit.control.facts import NOW, changed, drive, fit_facts

RULES = {"gpu": problems_of_gpu_host, "bastion": problems_of_bastion}
OVERRIDE = "docker-compose.override.yml"


@pytest.fixture
def facts():
    return fit_facts()


def complaints(facts, settings, lock, role="gpu"):
    return RULES[role](facts, settings, lock, NOW)


@pytest.mark.parametrize("role", ["gpu", "bastion"])
def test_a_fit_host_has_no_complaints(facts, settings, lock, role):
    assert complaints(facts, settings, lock, role) == []


LACKS = [
    ("user", 1000, "do not run as root"),
    ("rsync", False, "rsync is missing"),
    ("rrsync", False, "rrsync is missing"),
    ("docker", None, "no Docker Engine"),
    ("docker.compose", None, "Docker Compose is missing"),
    ("docker.compose", "1.29.2", "Docker Compose is 1.29.2"),
    ("clock", NOW - 301, "clock is 301 s"),
    ("egress", ["huggingface.co:443"], "reaches huggingface.co:443"),
    ("store.blobs", None, "cannot be read"),
    ("store.incoming", None, "cannot be read"),
    ("store.releases", None, "cannot be read"),
    ("store.devices", [1, 2], "several filesystems"),
    ("store.frozen", {"why": "x"}, "is frozen: x"),
    ("store_filesystem.read_only", True, "/srv/models is on a read-only filesystem"),
    ("store_filesystem.free_bytes", 1000, "needs 67.1 MB, 1.0 kB free"),
    ("store_filesystem.free_inodes", 3, "inodes, 3 free"),
    ("docker.root.free_bytes", 5, "/var/lib/docker: needs"),
    ("stack", None, "has no compose file"),
    ("stack.files", [], "has no compose file"),
    ("stack.services", None, "refuses"),
    ("stack.services", ["web"], "no service 'backend'; it has web"),
    ("stack.services", ["backend", "smoke"], "called smoke"),
    ("stack.services", ["backend", "hf-model"], "called hf-model"),
    ("stack.overrides", {OVERRIDE: "services: {}"}, "is not ours"),
    ("stack.overrides", {OVERRIDE: None}, "is not ours"),
]


@pytest.mark.parametrize(("path", "value", "says"), LACKS)
def test_each_lack_is_named_with_a_fix(facts, settings, lock, path, value, says):
    found = complaints(changed(facts, path, value), settings, lock)
    assert len(found) == 1 and says in found[0] and "Next: " in found[0], found


@pytest.mark.parametrize(
    ("python", "says"), [(None, "python3 is missing"), ([], "python3 is missing"), ([3, 8, 1], "3.8.1")]
)
def test_a_python_that_is_too_old_is_named_with_a_fix(python, says):
    (found,) = python_problem(python)
    assert says in found and "Next: " in found


@pytest.mark.parametrize("python", [[3, 9, 0], [3, 13, 1]])
def test_a_python_that_runs_our_programs_is_fine(python):
    assert python_problem(python) == []


def test_everything_is_said_at_once(facts, settings, lock):
    for path, value, _ in LACKS[:3]:
        facts = changed(facts, path, value)
    assert len(complaints(facts, settings, lock)) == 3


def test_an_override_of_ours_is_fine(facts, settings, lock):
    ours = changed(facts, "stack.overrides", {OVERRIDE: compose.MARKER + "; release x\n"})
    assert complaints(ours, settings, lock) == []


def test_a_store_that_must_be_mounted_is_checked(facts, settings, lock):
    strict = settings.model_copy(update={"store_is_mount": True})
    assert "is not mounted" in complaints(facts, strict, lock)[0]
    assert complaints(changed(facts, "store.mounted", True), strict, lock) == []


def test_a_host_that_loads_the_model_itself_may_reach_the_hub(facts, settings, lock):
    open_host = changed(facts, "egress", ["huggingface.co:443"])
    online = settings.model_copy(update={"delivery": "online"})
    assert complaints(open_host, settings, lock) and complaints(open_host, online, lock) == []


def test_two_paths_on_one_filesystem_need_their_sum(facts, settings, lock):
    need = MARGIN + sum(lock.blobs().values())
    store = changed(facts, "store_filesystem.free_bytes", need)
    assert complaints(store, settings, lock) == []
    shared = changed(changed(store, "docker.root.device", 1), "docker.root.free_bytes", need)
    assert "/srv/models and /var/lib/docker: needs" in complaints(shared, settings, lock)[0]


LIST = [(SIGNERS, 0, 0o100644), ("/etc/hf-offline", 0, 0o40755), ("/etc", 0, 0o40755), ("/", 0, 0o40755)]


def listed(number, owner=0, mode=None):
    """LIST with another owner or mode of one of its parts."""
    found = list(LIST)
    path, _, was = found[number]
    found[number] = (path, owner, was if mode is None else mode)
    return found


@pytest.mark.parametrize("role", ["gpu", "bastion"])
def test_with_sign_each_machine_says_who_may_sign(facts, settings, lock, role):
    asked = settings.model_copy(update={"sign": True})
    assert f"has no {SIGNERS}" in complaints(facts, asked, lock, role)[0]
    lists = changed(facts, "signers", LIST)
    assert complaints(lists, asked, lock, role) == complaints(lists, settings, lock, role) == []
    bare = changed(lists, "ssh_keygen", False)
    assert "ssh-keygen is missing" in complaints(bare, settings, lock, role)[0], "the list decides, not the setting"


@pytest.mark.parametrize(
    ("found", "good"),
    [
        (LIST, True),
        (listed(1, mode=0o41777), True),  # sticky, as /tmp: what is root's there stays
        (listed(0, owner=1000), False),
        (listed(0, mode=0o100664), False),
        (listed(0, mode=0o100646), False),
        (listed(0, mode=0o101646), False),
        (listed(0, mode=0o120777), False),  # a link
        (listed(0, mode=0o40755), False),
        (listed(1, owner=1000), False),
        (listed(1, mode=0o40775), False),
        (listed(2, mode=0o40757), False),
        ([(SIGNERS, -1, 0)], False),  # unknown
    ],
)
def test_who_may_sign_is_roots_alone_to_say(facts, settings, lock, found, good):
    said = complaints(changed(facts, "signers", found), settings, lock)
    assert said == [] if good else len(said) == 1 and "others than root" in said[0] and "Next: " in said[0]


def test_what_is_not_signed_is_named_with_the_command():
    assert unsigned([]) == []
    assert "Next: ssh-keygen -Y sign -n hf-offline -f KEY a.json b.json" in unsigned(["a.json", "b.json"])[0]


def test_gpus_are_asked_for(facts, settings, lock):
    wanted = settings.model_copy(update={"gpus": 2, "min_driver": "550.54"})
    assert "no GPU" in complaints(facts, wanted, lock)[0]
    one = changed(facts, "gpus", [Gpu("H100", "535.1")])
    assert len(complaints(one, wanted, lock)) == 3
    two = changed(one, "gpus", [Gpu("H100", "550.54.15")] * 2)
    assert complaints(changed(two, "docker.runtimes", ["runc", "nvidia"]), wanted, lock) == []


def test_nothing_is_needed_where_everything_is(facts, settings, lock):
    full = changed(facts, "store.blobs", lock.blobs())
    full = changed(full, "docker.images", {lock.image.tag: lock.image.ids[0]})
    full = changed(full, "store_filesystem.free_bytes", 0)
    assert complaints(full, settings, lock) == []
    assert missing(full, lock) == {} and missing(facts, lock) == lock.blobs()


@pytest.mark.parametrize(("key", "said"), [("skopeo", "skopeo is missing"), ("venv", "python3 has no venv")])
def test_the_bastion_must_be_able_to_fetch_unless_it_has_everything(facts, settings, lock, key, said):
    lacks = replace(facts, **{key: False})
    assert any(said in line for line in complaints(lacks, settings, None, "bastion"))
    assert any(said in line for line in complaints(lacks, settings, lock, "bastion"))
    assert complaints(changed(lacks, "store.blobs", lock.blobs()), settings, lock, "bastion") == []
    assert complaints(lacks, settings, lock) == [], "a GPU host needs neither"


@pytest.mark.parametrize(
    ("version", "good"), [("2.26.1-4", True), ("v2.1", True), ("1.29.2", False), ("dev", False), ("", False)]
)
def test_compose_is_of_the_second_version(facts, settings, lock, version, good):
    assert (complaints(changed(facts, "docker.compose", version), settings, lock) == []) is good


# ----------------------------------------------------------------------------------------------------------- the drive


@pytest.fixture
def far(settings):
    return settings.model_copy(update={"source": "bundle", "bundle": "/media/stick"})


def test_a_bastion_with_a_bundle_needs_neither_skopeo_nor_venv(facts, far, lock):
    bare = replace(facts, skopeo=False, venv=False, bundle=drive(lock.id))
    assert complaints(bare, far, lock, "bastion") == []


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (drive(exists=False), "bundle.json is missing; found no directory"),
        (drive(), "a directory without it"),
        (drive("f" * 64), "holds release 'ffffffffffff'"),
    ],
)
def test_a_drive_that_is_not_the_locks_is_named(facts, far, lock, found, says):
    seen = replace(facts, bundle=found)
    (line,) = complaints(seen, far, lock, "bastion")
    assert says in line and "Next: " in line
    full = changed(seen, "store.blobs", lock.blobs())
    assert complaints(full, far, lock, "bastion") == [], "a store that has everything needs no drive"


def test_what_a_take_left_half_done_counts_as_room(facts, far, lock):
    seen = replace(facts, bundle=drive(lock.id))
    seen = changed(seen, "docker.images", {lock.image.tag: lock.image.ids[0]})
    most = sum(lock.blobs().values())
    seen = changed(seen, "store_filesystem.free_bytes", MARGIN + most - 700)
    assert "needs" in complaints(seen, far, lock, "bastion")[0]
    layer = lock.image.layers[0].sha256
    assert complaints(changed(seen, "store.fetching", {layer: 700}), far, lock, "bastion") == []


def test_a_fetch_needs_room_for_its_largest_file_twice(facts, settings, lock):
    seen = changed(facts, "docker.images", {lock.image.tag: lock.image.ids[0]})
    most = sum(lock.blobs().values())
    once = changed(seen, "store_filesystem.free_bytes", MARGIN + most)
    assert complaints(once, settings, lock) == [] and "needs" in complaints(once, settings, lock, "bastion")[0]
    twice = changed(seen, "store_filesystem.free_bytes", MARGIN + most + max(lock.model_files().values()))
    assert complaints(twice, settings, lock, "bastion") == []


GB = 10**9


@pytest.mark.parametrize(
    ("capacity", "carried", "line"),
    [
        ("64GB", {"a": 3 * GB, "b": GB // 10}, "fits on 64 GB: yes, 3.1 GB"),
        ("3GB", {"a": 3 * GB}, "fits on 3 GB: no, 3.0 GB"),
        ("1.5GB", {str(i): 1 for i in range(12000)}, "fits on 1.5 GB: no, 12.0 kB"),
    ],
)
def test_whether_a_bundle_fits(settings, capacity, carried, line):
    good, said = fits_drive(carried, {}, settings.model_copy(update={"bundle_capacity": capacity}))
    assert said == line and good is (": yes" in line)


def test_the_parts_of_a_bundle(settings):
    small = settings.model_copy(update={"bundle_part_size": "1kB"})
    assert part_sizes({"a": 2500, "b": 1000, "c": 0}, small) == [1000, 1000, 500, 1000, 0]


def test_a_drive_that_cannot_take_the_bundle_is_named_before_anything_is_fetched(facts, far):
    seen = replace(facts, bundle=drive(free=500))
    assert "needs 1.0 kB, 500 B free on /media/stick" in unwritable(seen, far, {"a": 1000}, {})[0]
    there = changed(seen, "bundle.parts", {"a": 600})
    assert unwritable(there, far, {"a": 1000}, {}) == [], "what is there already needs no room"
    gone = replace(facts, bundle=drive(exists=False))
    assert "is not there" in unwritable(gone, far, {"a": 1000}, {})[0]
    small = far.model_copy(update={"bundle_capacity": "1kB"})
    assert "no, 1.0 kB. Next: a larger drive" in unwritable(replace(facts, bundle=drive()), small, {"a": 1000}, {})[0]
