"""Settings: typed, checked at load, each error with file, key, expected and found."""

from __future__ import annotations

import typing

import pytest

from tasks.control import settings
from tasks.remote.container import families
from tasks.shared.errors import Refused


def check(values, **more):
    return settings.check([("group_data/all.py", {**values, **more})])


def test_the_defaults_are_enough(values):
    found = check(values)
    assert found.waves == [1, "100%"] and found.max_failed_hosts == 0 and found.hub == "https://huggingface.co"


def test_the_stronger_layer_wins(values):
    found = settings.check([("--data", {"dtype": "float32"}), ("group_data/all.py", {**values, "dtype": "float16"})])
    assert found.dtype == "float32"


def test_what_pyinfra_reads_itself_is_left_alone(values):
    check(values, ssh_user="root", _sudo=True)


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
    assert settings.image_name(source) == name


def test_the_families_are_those_that_the_smoke_test_can_load():
    known = set(typing.get_args(settings.Settings.model_fields["family"].annotation))
    assert known == {*families.FAMILIES, "plain"}


@pytest.mark.parametrize(("text", "count"), [("64GB", 64 * 10**9), ("1.5MB", 1_500_000), ("2kB", 2000)])
def test_sizes_of_drives_are_decimal(text, count):
    assert settings.in_bytes(text) == count


def test_every_setting_is_described():
    assert all(field.description for field in settings.Settings.model_fields.values())


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
        settings.check([("--data", {"release": 1234}), ("group_data/all.py", values)])
    assert str(no.value).endswith("""in quotes, --data 'release="…"'"""), "and 0123 is not taken for 123"
    with pytest.raises(Refused, match=r"expected a valid boolean, found 1\. Next: README, Settings"):
        settings.check([("--data", {"update": 1}), ("group_data/all.py", values)])


def test_a_value_that_stands_nowhere_names_the_files_where_it_could(values):
    del values["lock"]
    with pytest.raises(
        Refused, match=r"^group_data/prod.py or group_data/all.py: lock stands nowhere; expected the lock's"
    ):
        settings.check([("inventories/prod.py: gpu-01", {}), ("group_data/prod.py", values), ("group_data/all.py", {})])
