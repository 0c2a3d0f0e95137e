"""Settings: typed, checked at load, each error with file, key, expected and found."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

from tasks.control import opening
from tasks.control.settings import GROUPS, Settings, table
from tasks.control.settings_layers import image_name, read_settings
from tasks.remote.container import families
from tasks.shared.errors import Refused


def check(values, **more):
    return read_settings([("group_data/all.py", {**values, **more})])


def test_the_defaults_are_enough(values):
    found = check(values)
    assert found.waves == [1, "100%"] and found.max_failed_hosts == 0 and found.hub == "https://huggingface.co"


def test_the_stronger_layer_wins(values):
    found = read_settings([("--data", {"dtype": "float32"}), ("group_data/all.py", {**values, "dtype": "float16"})])
    assert found.dtype == "float32"


def test_what_pyinfra_reads_itself_is_left_alone(values):
    assert check(values, ssh_user="root", _sudo=True) == check(values)


def test_an_argument_of_pyinfra_that_would_defeat_the_gates_is_refused(values):
    with pytest.raises(Refused, match="_ignore_errors"):
        check(values, _ignore_errors=True)


def test_an_unknown_key_names_the_nearest_known_one(values):
    with pytest.raises(Refused, match=r"group_data/all.py: has an unknown key 'bandwith_limit'; .*'bandwidth_limit'"):
        check(values, bandwith_limit=3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("models", []),
        ("models", [{"repo": "docai/x", "revision": "../x"}]),
        ("models", [{"repo": "x", "revision": "main"}]),
        ("models", [{"repo": "docai/x", "revision": "main", "rev": 1}]),
        ("image", "docai/backend"),
        ("image", "docker://-x"),
        ("dtype", "float8"),
        ("family", "colbert"),
        ("image_processor", "fast"),
        ("model_store", "srv/models"),
        ("model_store", "/srv/../etc"),
        ("model_store", "/srv/a b"),
        ("model_store", "/srv/$(id)"),
        ("push_user", "root; id"),
        ("push_port", 0),
        ("waves", [0]),
        ("waves", ["120%"]),
        ("waves", ["0%"]),
        ("waves", []),
        ("max_failed_hosts", -1),
        ("max_failed_hosts", "1"),
        ("tolerance", {"cpu/float32": [0.9]}),
        ("verify", "fast"),
        ("gpus", "some"),
        ("gpus", -1),
        ("fetch_deadline", 0),
        ("egress", ["nohostport"]),
        ("python", "python3; id"),
        ("source", "usb"),
        ("source", "bundle"),
        ("bundle", "/media/../etc"),
        ("bundle_part_size", "4.3GB"),
        ("bundle_part_size", "64"),
        ("bundle_capacity", "64 GB"),
        ("bundle_python", "3.9"),
    ],
)
def test_a_wrong_value_names_file_key_and_what_was_found(values, key, value):
    with pytest.raises(Refused) as no:
        check(values, **{key: value})
    assert str(no.value).startswith("group_data/all.py: ") and key in str(no.value)


@pytest.mark.parametrize("key", ["lock", "models", "image"])
def test_a_missing_key_is_named(values, key):
    del values[key]
    with pytest.raises(Refused, match=key):
        check(values)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("docker-daemon:docai/backend:1.0", "docai/backend:1.0"),
        ("docker://reg.example:5000/docai/backend:1.0", "reg.example:5000/docai/backend:1.0"),
        ("docker://reg.example:5000/docai/backend", "reg.example:5000/docai/backend:latest"),
        ("docker://reg.example/b:1@sha256:" + "0" * 64, "reg.example/b:1"),
    ],
)
def test_image_names(source, name):
    assert image_name(source) == name


def test_the_families_are_those_that_the_smoke_test_can_load():
    known = set(typing.get_args(Settings.model_fields["family"].annotation))
    assert known == {*families.FAMILIES, "custom"}


def test_every_setting_is_described():
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"soak": "30"}, "soak is not right; expected a valid integer, found '30'"),
        ({"waves": [0]}, "waves.0 is not right; expected greater than 0 or a valid string, found 0"),
        ({"waves": []}, "waves is not right; expected at least 1 item, found []"),
        ({"dtype": "x"}, "dtype is not right; expected 'bfloat16', 'float16' or 'float32', found 'x'"),
        ({"gpus": "some"}, "gpus is not right; expected 'all' or a valid integer, found 'some'"),
        ({"tolerance": {"cuda/bfloat16": [1.0]}}, "tolerance.cuda/bfloat16 is not right; expected at least 2 items"),
        ({"probe": {"url": "http://x", "answer": "a"}}, "probe.body is not right; expected required"),
    ],
)
def test_what_is_wrong_is_said_in_words_of_the_setting(values, more, said):
    with pytest.raises(Refused) as no:
        check(values, **more)
    assert str(no.value).startswith(f"group_data/all.py: {said}"), str(no.value)


def test_digits_on_the_command_line_are_to_be_quoted(values):
    with pytest.raises(Refused) as no:
        read_settings([("--data", {"release": 1234}), ("group_data/all.py", values)])
    assert str(no.value).endswith("""in quotes: --data 'release="…"'"""), "and 0123 is not taken for 123"
    with pytest.raises(Refused, match=r"expected a valid boolean, found 1\. Next: docs/settings\.md"):
        read_settings([("--data", {"update": 1}), ("group_data/all.py", values)])


def test_a_value_that_stands_nowhere_names_the_files_where_it_could(values):
    del values["lock"]
    with pytest.raises(
        Refused, match=r"^group_data/prod.py or group_data/all.py: lock is not set; expected the lock's"
    ):
        read_settings([("inventories/prod.py: gpu-01", {}), ("group_data/prod.py", values), ("group_data/all.py", {})])


# ---------------------------------------------------------------------------------------------------------- the manual


def test_every_setting_stands_in_exactly_one_group_of_the_manual():
    places: dict[str, list[str]] = {}
    title = ""
    for line in table().splitlines():
        if line.startswith("## "):
            title = line.removeprefix("## ")
        elif line.startswith("| `"):
            places.setdefault(line.split("`")[1], []).append(title)
    assert {name: len(titles) for name, titles in places.items()} == dict.fromkeys(Settings.model_fields, 1)
    assert {titles[0] for titles in places.values()} == set(GROUPS.values()) and "" not in places.values()


def test_every_group_begins_with_a_setting_that_there_is():
    assert set(GROUPS) <= set(Settings.model_fields)


def test_what_is_one_for_all_hosts_or_for_one_command_is_a_setting():
    known = set(Settings.model_fields)
    assert set(opening.ONE_FOR_ALL) <= known and len(set(opening.ONE_FOR_ALL)) == len(opening.ONE_FOR_ALL)
    assert set(opening.FOR_ONE_COMMAND) <= known


def test_a_setting_of_one_command_names_a_command_that_there_is_and_stands_in_that_group():
    root = Path(__file__).parents[3]
    assert all((root / command).is_file() for command in opening.FOR_ONE_COMMAND.values())
    order = list(Settings.model_fields)
    first = next(key for key, title in GROUPS.items() if title == "For one command, as --data")
    assert set(order[order.index(first) :]) == set(opening.FOR_ONE_COMMAND)


def test_a_default_is_shown_as_it_is_written():
    assert "| `waves` | `[1, '100%']` |" in table() and "| `lock` | **required** |" in table()
