"""Settings from their layers (--data, inventory, group_data), checked while a command loads, before any host is touched.

An error names the file, the key, what is expected and what was found. An unknown key names the nearest known one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from tasks.control.rules.units import in_bytes
from tasks.control.settings import Settings
from tasks.shared.errors import Refused
from tasks.shared.names import IMAGE

MANUAL = "docs/settings.md"
DEFAULTS = "group_data/all.py"
FAT32 = (4 << 30) - 1  # bytes: its largest file
# pydantic's own words: its names for the members of a union, and what it says around what it expected.
MEMBER = re.compile(r"constrained-\w+|literal\[.*\]")
SHOULD = re.compile(r"^\w+ should (be |have )?|^Field (?=required)| after validation, not \d+$")
# What pyinfra itself reads from host data.
PYINFRA = ("ssh_", "docker_", "fake_")
# A host's own way to root. pyinfra's other arguments, such as `_ignore_errors`, would defeat the gates.
ELEVATION = ("_sudo", "_sudo_user", "_use_sudo_login", "_sudo_password", "_su_user", "_doas", "_dzdo")

Layer = tuple[str, Mapping[str, Any]]


def read_settings(layers: Sequence[Layer]) -> Settings:
    """The settings in these layers of (origin, values), the strongest first. Raises Refused for the first that is wrong."""
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for where, values in layers:
        for key, value in values.items():
            if key.startswith(PYINFRA) or key in ELEVATION or key in merged:
                continue
            if key not in Settings.model_fields:
                raise _unknown(where, key, value)
            merged[key], origin[key] = value, where
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        files = [where for where, _ in layers if where.startswith("group_data/") and "@" not in where]
        raise _refused(error, origin, files) from None
    for check in (_check_image, _check_bundle, _check_paths, _check_family):
        check(settings, origin)
    return settings


def _unknown(where: str, key: str, value: Any) -> Refused:
    known = sorted(Settings.model_fields)
    near = difflib.get_close_matches(key, known, 1)
    hint = f"the nearest is {near[0]!r}" if near else f"one of {', '.join(known)}"
    return Refused(where, f"has an unknown key {key!r}", hint, repr(value)[:80], MANUAL)


def _refused(error: ValidationError, origin: Mapping[str, str], files: Sequence[str]) -> Refused:
    """The first thing that is wrong, in our words. `files`: where a value that is missing could stand."""
    errors = error.errors()
    first = errors[0]
    top = str(first["loc"][0])
    if first["type"] == "missing" and len(first["loc"]) == 1:
        words = str(Settings.model_fields[top].description).rstrip(".")
        expected = words[0].lower() + words[1:]
        return Refused(" or ".join(files), f"{top} is not set", expected, "nothing", MANUAL)
    # Each member of a union complains under a name of pydantic's own. All of them together are what is expected.
    places = [".".join(str(part) for part in each["loc"] if not MEMBER.fullmatch(str(part))) for each in errors]
    about = [each for each, place in zip(errors, places, strict=True) if place == places[0]]
    fix, found = MANUAL, first.get("input")
    if origin.get(top) == "--data" and first["type"] == "string_type" and isinstance(found, int | float):
        fix = f"""write the number as a text, in quotes: --data '{top}="…"'"""
    expected = " or ".join(SHOULD.sub("", str(each["msg"])) for each in about)
    return Refused(origin[top], f"{places[0]} is not right", expected, repr(found)[:80], fix)


def _check_image(settings: Settings, origin: Mapping[str, str]) -> None:
    scheme, _, rest = settings.image.partition(":")
    name = rest.removeprefix("//").partition("@")[0]
    if scheme not in ("docker-daemon", "docker", "oci", "docker-archive") or not IMAGE.fullmatch(name.lstrip("/")):
        expected = "docker-daemon:name:tag, docker://registry/name:tag or docker://registry/name:tag@sha256:…"
        raise Refused(origin["image"], "image is no image source", expected, repr(settings.image), MANUAL)


def _check_bundle(settings: Settings, origin: Mapping[str, str]) -> None:
    if in_bytes(settings.bundle_part_size) > FAT32:
        expected, found = f"at most {FAT32} bytes, which FAT32 takes", settings.bundle_part_size
        raise Refused(origin["bundle_part_size"], "bundle_part_size is too large", expected, found, MANUAL)
    if settings.source == "bundle" and not settings.bundle:
        raise Refused(origin["source"], "source bundle needs the bundle's directory", "bundle", "none", MANUAL)


def _check_paths(settings: Settings, origin: Mapping[str, str]) -> None:
    for key in ("model_store", "stack", "hf_home", "bundle"):
        path = getattr(settings, key) or "/none"
        if set(path.split("/")[1:]) & {"", ".", ".."}:
            where = origin.get(key, DEFAULTS)
            raise Refused(where, f"{key} is no plain path", "/a/b without . and ..", repr(path), MANUAL)


def _check_family(settings: Settings, origin: Mapping[str, str]) -> None:
    if (settings.family == "custom") != bool(settings.smoke_command):
        where = origin.get("smoke_command", origin.get("family", DEFAULTS))
        found = f"family {settings.family!r}, smoke_command {settings.smoke_command!r}"
        raise Refused(where, "smoke_command goes with family custom", "both or neither", found, MANUAL)


def image_name(source: str) -> str:
    """The plain name and tag of an image source: what the stack's compose file calls it."""
    name = source.partition(":")[2].removeprefix("//").partition("@")[0]
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"
