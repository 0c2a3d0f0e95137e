"""Preflight's rules: a fit host has no complaints; each lack is named, all at once."""

from __future__ import annotations

import copy

import pytest

from tasks.control import compose, settings
from tasks.control import preflight as fitness
from tasks.shared.signatures import SIGNERS

NOW = 1_000_000.0
SEEN = {
    "python": [3, 11, 2],
    "clock": NOW,
    "user": 0,
    "rsync": ["rsync 3.2.7"],
    "rrsync": "/usr/bin/rrsync",
    "docker": {
        "version": "26.1",
        "compose": "2.26.1",
        "root": {"path": "/var/lib/docker", "device": 2, "free_bytes": 10**12, "free_inodes": 10**6},
        "images": {},
        "runtimes": ["runc"],
        "containerd_store": False,
    },
    "gpus": None,
    "skopeo": "skopeo 1.9",
    "venv": True,
    "ssh_keygen": "/usr/bin/ssh-keygen",
    "signers": None,
    "egress": [],
    "store_filesystem": {
        "path": "/srv/models",
        "device": 1,
        "mount": "/",
        "read_only": False,
        "free_bytes": 10**12,
        "free_inodes": 10**6,
    },
    "store": {
        "blobs": {},
        "incoming": {},
        "fetching": {},
        "releases": [],
        "states": {},
        "current": None,
        "frozen": None,
        "mounted": False,
        "devices": [1],
        "tools": [],
    },
    "stack": {
        "files": ["docker-compose.yml"],
        "override": "docker-compose.override.yml",
        "overrides": {},
        "services": ["backend"],
        "project": "docai",
    },
    "container": None,
}


@pytest.fixture
def seen():
    return copy.deepcopy(SEEN)


@pytest.fixture
def chosen(values):
    return settings.check([("x", {**values, "gpus": 0})])


def complaints(seen, chosen, lock, role="gpu"):
    return fitness.unfit(seen, chosen, lock, role, NOW)


def test_a_fit_host_has_no_complaints(seen, chosen, lock):
    assert complaints(seen, chosen, lock) == []


def change(seen, path, value):
    node = seen
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value


LACKS = [
    (["python"], None, "python3 is missing"),
    (["python"], [3, 8, 1], "3.8.1"),
    (["user"], 1000, "do not run as root"),
    (["rsync"], [], "rsync is missing"),
    (["rrsync"], None, "rrsync is missing"),
    (["docker"], None, "no Docker Engine"),
    (["docker", "compose"], None, "Docker Compose is missing"),
    (["docker", "compose"], "1.29.2", "Docker Compose is 1.29.2"),
    (["clock"], NOW - 301, "clock is 301 s"),
    (["egress"], ["huggingface.co:443"], "reaches huggingface.co:443"),
    (["store", "blobs"], None, "cannot be read"),
    (["store", "devices"], [1, 2], "several filesystems"),
    (["store", "frozen"], {"why": "x"}, "is frozen: x"),
    (["store_filesystem", "read_only"], True, "/srv/models is on a read-only filesystem"),
    (["store_filesystem", "free_bytes"], 1000, "needs 67.1 MB, 1.0 kB free"),
    (["store_filesystem", "free_inodes"], 3, "inodes, 3 free"),
    (["docker", "root", "free_bytes"], 5, "/var/lib/docker: needs"),
    (["stack", "files"], [], "has no compose file"),
    (["stack", "services"], None, "refuses"),
    (["stack", "services"], ["web"], "no service 'backend'; it has web"),
    (["stack", "services"], ["backend", "smoke"], "called smoke"),
    (["stack", "overrides"], {"docker-compose.override.yml": "services: {}"}, "is not ours"),
]


@pytest.mark.parametrize(("path", "value", "says"), LACKS)
def test_each_lack_is_named_with_a_mend(seen, chosen, lock, path, value, says):
    change(seen, path, value)
    found = complaints(seen, chosen, lock)
    assert len(found) == 1 and says in found[0] and "Next: " in found[0]


def test_everything_is_said_at_once(seen, chosen, lock):
    for path, value, _ in LACKS[3:6]:
        change(seen, path, value)
    assert len(complaints(seen, chosen, lock)) == 3


def test_an_override_of_ours_is_fine(seen, chosen, lock):
    seen["stack"]["overrides"] = {"docker-compose.override.yml": compose.MARKER + "; release x\n"}
    assert complaints(seen, chosen, lock) == []


def test_unknown_is_a_complaint(chosen, lock):
    assert complaints(None, chosen, lock)


def test_a_store_that_must_be_mounted_is_checked(seen, chosen, lock):
    strict = chosen.model_copy(update={"store_is_mount": True})
    assert "is not mounted" in complaints(seen, strict, lock)[0]


LIST = [[SIGNERS, 0, 0o100644], ["/etc/hf-offline", 0, 0o40755], ["/etc", 0, 0o40755], ["/", 0, 0o40755]]


def changed(number, **more):
    """LIST with another owner or mode of one of its parts."""
    found = [dict(zip(("path", "owner", "mode"), part, strict=True)) for part in LIST]
    found[number] |= more
    return [list(part.values()) for part in found]


@pytest.mark.parametrize("role", ["gpu", "bastion"])
def test_with_sign_each_machine_says_who_may_sign(seen, chosen, lock, role):
    asked = chosen.model_copy(update={"sign": True})
    assert f"has no {SIGNERS}" in complaints(seen, asked, lock, role)[0]
    seen["signers"] = LIST
    assert complaints(seen, asked, lock, role) == complaints(seen, chosen, lock, role) == []
    seen["ssh_keygen"] = None
    assert "ssh-keygen is missing" in complaints(seen, chosen, lock, role)[0], "the list decides, not the setting"


@pytest.mark.parametrize(
    ("found", "good"),
    [
        (LIST, True),
        (changed(1, mode=0o41777), True),  # sticky, as /tmp: what is root's there stays
        (changed(0, owner=1000), False),
        (changed(0, mode=0o100664), False),
        (changed(0, mode=0o100646), False),
        (changed(0, mode=0o101646), False),
        (changed(0, mode=0o120777), False),  # a link
        (changed(0, mode=0o40755), False),
        (changed(1, owner=1000), False),
        (changed(1, mode=0o40775), False),
        (changed(2, mode=0o40757), False),
        ([[SIGNERS, -1, 0]], False),  # unknown
    ],
)
def test_who_may_sign_is_roots_alone_to_say(seen, chosen, lock, found, good):
    seen["signers"] = found
    said = complaints(seen, chosen, lock)
    assert said == [] if good else len(said) == 1 and "others than root" in said[0] and "Next: " in said[0]


def test_what_is_not_signed_is_named_with_the_command():
    assert fitness.unsigned([]) == []
    assert "Next: ssh-keygen -Y sign -n hf-offline -f KEY a.json b.json" in fitness.unsigned(["a.json", "b.json"])[0]


def test_gpus_are_asked_for(seen, chosen, lock):
    wanted = chosen.model_copy(update={"gpus": 2, "min_driver": "550.54"})
    assert "no GPU" in complaints(seen, wanted, lock)[0]
    seen["gpus"] = [{"name": "H100", "driver": "535.1"}]
    assert len(complaints(seen, wanted, lock)) == 3
    seen["gpus"] *= 2
    seen["gpus"][0]["driver"] = "550.54.15"
    seen["docker"]["runtimes"].append("nvidia")
    assert complaints(seen, wanted, lock) == []


def test_nothing_is_needed_where_everything_is(seen, chosen, lock):
    seen["store"]["blobs"] = lock.blobs()
    seen["docker"]["images"] = {lock.image.tag: lock.image.ids[0]}
    seen["store_filesystem"]["free_bytes"] = 0
    assert complaints(seen, chosen, lock) == []
    assert fitness.lacking(seen, lock) == {}


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (5_990_000_000, "6.0 GB"), (2e15, "2000.0 TB")]
)
def test_sizes_for_people(count, text):
    assert fitness.size(count) == text


@pytest.mark.parametrize(("key", "said"), [("skopeo", "skopeo is missing"), ("venv", "python3 has no venv")])
def test_the_bastion_must_be_able_to_fetch_unless_it_has_everything(chosen, lock, key, said):
    seen = copy.deepcopy(SEEN) | {key: None}
    assert any(said in line for line in fitness.unfit(seen, chosen, None, "bastion", NOW))
    assert any(said in line for line in fitness.unfit(seen, chosen, lock, "bastion", NOW))
    seen["store"]["blobs"] = lock.blobs()
    assert fitness.unfit(seen, chosen, lock, "bastion", NOW) == []


# ------------------------------------------------------------------------------------------------------------ the stick


@pytest.fixture
def far(chosen):
    return chosen.model_copy(update={"source": "bundle", "bundle": "/media/stick"})


def drive(release_id=None, exists=True, free=10**12, parts=None):
    return {"exists": exists, "release": release_id, "free_bytes": free, "parts": parts, "mount": "/media/stick"}


def test_a_bastion_with_a_bundle_needs_neither_skopeo_nor_venv(seen, far, lock):
    seen |= {"skopeo": None, "venv": False, "bundle": drive(lock.id)}
    assert complaints(seen, far, lock, "bastion") == []


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (drive(exists=False), "bundle.json is missing; found no directory"),
        (drive(), "a directory without it"),
        (drive("f" * 64), "holds release 'ffffffffffff'"),
    ],
)
def test_a_drive_that_is_not_the_locks_is_named(seen, far, lock, found, says):
    seen["bundle"] = found
    (line,) = complaints(seen, far, lock, "bastion")
    assert says in line and "Next: " in line
    seen["store"]["blobs"] = lock.blobs()
    assert complaints(seen, far, lock, "bastion") == [], "a store that has everything needs no drive"


def test_what_a_take_left_half_done_counts_as_room(seen, far, lock):
    seen |= {"bundle": drive(lock.id)}
    seen["docker"]["images"] = {lock.image.tag: lock.image.ids[0]}
    most = sum(lock.blobs().values())
    seen["store_filesystem"]["free_bytes"] = fitness.MARGIN + most - 700
    assert "needs" in complaints(seen, far, lock, "bastion")[0]
    layer = lock.image.layers[0].sha256
    seen["store"]["fetching"] = {layer: 700}
    assert complaints(seen, far, lock, "bastion") == []


GB = 10**9


@pytest.mark.parametrize(
    ("capacity", "carried", "line"),
    [
        ("64GB", {"a": 3 * GB, "b": GB // 10}, "fits on 64 GB: yes, 3.1 GB"),
        ("3GB", {"a": 3 * GB}, "fits on 3 GB: no, 3.0 GB"),
        ("1.5GB", {str(i): 1 for i in range(12000)}, "fits on 1.5 GB: no, 12.0 kB"),
    ],
)
def test_whether_a_bundle_fits(chosen, capacity, carried, line):
    assert fitness.fits(carried, {}, chosen.model_copy(update={"bundle_capacity": capacity}))[1] == line


def test_the_parts_of_a_bundle(chosen):
    small = chosen.model_copy(update={"bundle_part_size": "1kB"})
    assert fitness.split({"a": 2500, "b": 1000, "c": 0}, small) == [1000, 1000, 500, 1000, 0]


def test_a_drive_that_cannot_take_the_bundle_is_named_before_anything_is_fetched(seen, far):
    seen["bundle"] = drive(free=500)
    assert "needs 1.0 kB, 500 B free on /media/stick" in fitness.unwritable(seen, far, {"a": 1000}, {})[0]
    seen["bundle"]["parts"] = {"a": 600}
    assert fitness.unwritable(seen, far, {"a": 1000}, {}) == [], "what is there already needs no room"
    seen["bundle"] = drive(exists=False)
    assert "is not there" in fitness.unwritable(seen, far, {"a": 1000}, {})[0]


@pytest.mark.parametrize(
    ("version", "good"), [("2.26.1-4", True), ("v2.1", True), ("1.29.2", False), ("dev", False), ("", False)]
)
def test_compose_is_of_the_second_version(seen, chosen, lock, version, good):
    seen["docker"]["compose"] = version
    assert (complaints(seen, chosen, lock) == []) is good
