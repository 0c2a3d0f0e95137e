"""The operator's settings: every key, its type, its default and why; read from group_data, inventory and --data.

Checked while deploy.py loads, before any host is touched. An unknown key names the nearest known one. The README's
table of settings is made from the descriptions here (`python -m tasks.lib.settings`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from tasks.shared.errors import Refused
from tasks.shared.names import IMAGE, REPO

# Path, user and host names become words of commands elsewhere: quoted there, and still kept plain here. Each class is spelt
# out: \w and \d are Unicode's in these patterns, which would let other letters in, and take half a second to compile.
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9_.@+/-]*[A-Za-z0-9_.@+-]$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}$")]
Project = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]  # Compose's own rule
Size = Annotated[int, Field(gt=0)]
Seconds = Annotated[int, Field(gt=0, le=7 * 86400)]
Wave = Annotated[int, Field(gt=0)] | Annotated[str, StringConstraints(pattern=r"^(100|[1-9][0-9]?)%$")]
# Decimal, as drives are sold. FAT32 has files up to 4 GiB − 1.
Bytes = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,5}(\.[0-9]{1,3})?(kB|MB|GB|TB)$")]
FAT32 = (4 << 30) - 1
Target = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:\[\]-]+:[0-9]{1,5}$")]
# Pydantic's own: its names for the members of a union, and what it says around what it expected.
MEMBER = re.compile(r"constrained-\w+|literal\[.*\]")
SHOULD = re.compile(r"^\w+ should (be |have )?|^Field (?=required)| after validation, not \d+$")
# What pyinfra itself reads from host data.
PYINFRA = ("ssh_", "docker_", "fake_")
# A host's own way to root; pyinfra's other arguments, as `_ignore_errors`, would defeat the gates.
ELEVATION = ("_sudo", "_sudo_user", "_use_sudo_login", "_sudo_password", "_su_user", "_doas", "_dzdo")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Model(Strict):
    repo: Annotated[str, StringConstraints(pattern=f"^{REPO.pattern}$")]
    revision: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]{0,199}$")]


class Probe(Strict):
    """How to embed through the running service: the backend's API is the operator's own."""

    url: Annotated[str, StringConstraints(pattern=r"^https?://")]
    body: dict[str, Any]
    answer: str
    at_least: Annotated[float, Field(gt=0, le=1)] = 0.99


class Settings(Strict):
    lock: Name = Field(description="the lock's file name in `group_data/locks/`, without `.json`")
    models: list[Model] = Field(min_length=1, description="repositories to lock; the first is the one that is served")
    image: str = Field(
        description="the backend image: `docker-daemon:name:tag` of the bastion's engine, or `docker://registry/name:tag`"
    )
    family: Literal["colpali", "colqwen2", "colqwen2.5", "colsmol", "plain"] = Field(
        "colpali",
        description="`colpali`, `colqwen2`, `colqwen2.5`, `colsmol`: how the smoke test loads the model; `plain` is any "
        "repository, tested by `smoke_command`",
    )
    smoke_command: list[str] = Field(
        [], description="for family `plain`: the command, in the container, that tells whether the model works"
    )
    delivery: Literal["mount", "bake", "online"] = Field(
        "mount",
        description="how the model reaches the service: the host's cache `mount`ed, `bake`d into the image as a layer, or `online`: loaded by the host itself, once (README, Three ways); part of the release",
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="weights are published in bfloat16; part of the release"
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="fixed, as goldens depend on it; part of the release"
    )
    image_processor: Literal["default", "torchvision", "pil"] = Field(
        "default",
        description="what scales pages (once `use_fast`): `default` is transformers' own choice, which is what an unmodified "
        "app gets; `torchvision`, `pil`: part of the release and its embedding space, used by the smoke test, and told to "
        "the service as `IMAGE_PROCESSOR`, which does nothing in an app that does not read it",
    )

    hub: str = Field("https://huggingface.co", pattern=r"^https?://", description="the Hub or a mirror of it")
    token_variable: Name = Field(
        "HF_TOKEN",
        description="the control machine's environment variable that holds a read-only token, for gated models",
    )
    xet: Literal["on", "off", "silent"] = Field(
        "on",
        description="Xet transfers at fetch (faster, checked by content); `off` needs one host fewer on the bastion's allow-list; `silent` fetches by Xet and keeps a container without hf_xet from warning",
    )
    ca_bundle: AbsolutePath | None = Field(
        None, description="delivery `online`: the host's CA bundle, where the mirror's certificate is a private one's"
    )
    fetch_deadline: Seconds = Field(
        14400, description="seconds for all downloads together, and for a bundle's writing or taking"
    )
    source: Literal["hub", "bundle"] = Field(
        "hub", description="where the bastion gets a release from; `bundle`, where no wire crosses: from a drive"
    )
    bundle: AbsolutePath | None = Field(
        None, description="the bundle's directory on the bastion: a mounted drive, as `/media/stick`"
    )
    bundle_part_size: Bytes = Field(
        "1GB",
        description="larger blobs are split; FAT32 takes files below 4 GiB, and one part is what is written again",
    )
    bundle_capacity: Bytes = Field("64GB", description="the size of the drive that will carry the bundle")
    bundle_python: str = Field(
        "3.11", pattern=r"^3\.[1-9][0-9]$", description="the far control machine's Python, for the wheels in the bundle"
    )

    model_store: AbsolutePath = Field("/srv/models", description="the store's path, on the bastion and on each host")
    store_is_mount: bool = Field(
        False, description="refuse to fill the root disk when the store's own disk is not mounted"
    )
    stack: AbsolutePath = Field("/srv/docai", description="the directory of the stack's compose file")
    project: Project | None = Field(None, description="the Compose project's name; by default Compose's own choice")
    service: Name = Field("backend", description="the stack's service that embeds")
    hf_home: AbsolutePath = Field(
        "/models/hf", description="where the release is mounted in the container; becomes HF_HOME"
    )
    environment: dict[str, str] = Field({}, description="more environment for the service and the smoke test")
    python: str = Field(
        "python3", pattern=r"^[A-Za-z0-9_./-]+$", description="the Python in the image that has colpali-engine"
    )
    gpus: Literal["all"] | Annotated[int, Field(ge=0)] = Field(
        "all", description="GPUs reserved for service and smoke test; 0 for none"
    )
    min_driver: str | None = Field(None, description="lowest NVIDIA driver that the image needs, as `550.54`")
    harden: bool = Field(
        False, description="also run the *service* read-only, without capabilities (the smoke test always is)"
    )

    push_parallel: Size = Field(6, description="hosts that receive at once")
    push_user: Name = Field(
        "hfpush",
        description="the user on each host that can write below `incoming/` and nothing else; two stores on one host need two",
    )
    push_address: str | None = Field(None, description="the host's address as the bastion sees it, if another")
    push_port: Annotated[int, Field(gt=0, lt=65536)] | None = Field(None, description="its ssh port there, if another")
    push_from: str | None = Field(
        None, description="the bastion's address as the host sees it, behind NAT; `*` for any"
    )
    bandwidth_limit: int = Field(0, ge=0, description="KiB/s for each host's push; 0 is without limit")
    push_deadline: Seconds = Field(14400, description="seconds for one host's push, retries included")

    smoke_deadline: Seconds = Field(900, description="seconds for the smoke test of one host")
    tolerance: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]] = Field(
        {}, description="cosine floors [mean, 1st percentile] by class, as `{'cuda/bfloat16': [0.999, 0.99]}`"
    )
    health_deadline: Seconds = Field(
        600, description="seconds for the service to become healthy; then the host reverts"
    )
    soak: Annotated[int, Field(ge=0)] = Field(
        30, description="seconds that the switched service must stay up, without a restart, before it is confirmed"
    )
    confirm_deadline: Seconds = Field(
        60, description="seconds for a new connection to confirm the switch; else the host puts the old release back"
    )
    drain: str = Field("", description="shell command on a host before its switch (take it out of the load balancer)")
    readmit: str = Field("", description="shell command on a host after its switch or its withdrawal")
    probe: Probe | None = Field(None, description="url, body, answer: an embedding through the running service")
    verify_max_age: Annotated[int, Field(ge=0)] = Field(
        604800, description="seconds; what is activated is hashed again when its last check is older"
    )
    waves: list[Wave] = Field([1, "100%"], min_length=1, description="hosts switched together: numbers or shares")
    on_failure: Literal["stop", "withdraw-wave", "withdraw-all"] = Field(
        "stop", description="after too many failed hosts: earlier switches stay, or those of the wave, or all, go back"
    )
    rollback_waves: list[Wave] = Field(["100%"], min_length=1, description="as `waves`, for tasks/rollback.py")
    sign: bool = Field(
        False, description="stop where lock and goldens are not signed, or a host does not say who may sign"
    )
    embedding_space_change: Literal["refused", "mixed-accepted"] = Field(
        "refused", description="whether waves may serve two embedding spaces for a while"
    )
    wave: Annotated[int, Field(gt=0)] | None = Field(
        None, description="on a host: its wave, from 1; hosts without one follow those with"
    )
    out_of_service: str | None = Field(None, description="on a host: why it is left out for now")
    keep_releases: Annotated[int, Field(ge=1)] = Field(3, description="releases that tasks/prune.py keeps on a host")
    max_failed_hosts: Annotated[int, Field(ge=0)] = Field(0, description="failed hosts that do not stop a rollout")
    egress: list[Target] = Field(
        ["huggingface.co:443"], description="`name:port` that must not answer a GPU host; [] to skip the check"
    )

    verify: Literal["", "full"] = Field("", description="`--data verify=full`: hash everything again")
    update: bool = Field(False, description="`--data update=true` for tasks/lock.py: follow branches that moved")
    release: str = Field(
        "", pattern=r"^[0-9a-f]{0,64}$", description="for tasks/rollback.py: another release than the previous"
    )
    lease: str = Field("", pattern=r"^(x[0-9a-f]{8})?$", description="for tasks/unlock.py: the lease's id")
    sample: Annotated[int, Field(ge=1, le=100)] = Field(
        100, description="for tasks/verify.py: percent of the bytes, by lot"
    )
    accept_goldens_from: str = Field("", description="for tasks/lock.py: the host whose embeddings become goldens")
    have: str = Field("", description="for tasks/bundle.py: the far side's have.json; what it names stays at home")


def check(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> Settings:
    """Settings from layers of (origin, values), the strongest first. Refused names origin, key, expected and found."""
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    known = sorted(Settings.model_fields)
    for where, values in layers:
        for key, value in values.items():
            if key.startswith(PYINFRA) or key in ELEVATION or key in merged:
                continue
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"the nearest is {near[0]!r}" if near else f"one of {', '.join(known)}"
                raise Refused(where, f"has an unknown key {key!r}", hint, repr(value)[:80], "README, Settings")
            merged[key], origin[key] = value, where
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        raise _refused(
            error, origin, [where for where, _ in layers if where.startswith("group_data/") and "@" not in where]
        ) from None
    _check_words(settings, origin)
    if (settings.family == "plain") != bool(settings.smoke_command):
        where = origin.get("smoke_command", origin.get("family", "group_data/all.py"))
        found = f"family {settings.family!r}, smoke_command {settings.smoke_command!r}"
        raise Refused(where, "smoke_command goes with family plain", "both or neither", found, "README, Settings")
    return settings


def _refused(error: ValidationError, origin: Mapping[str, str], files: Sequence[str]) -> Refused:
    """The first thing that is wrong, in our words; `files`: where a value that stands nowhere could."""
    every = error.errors()
    top = str(every[0]["loc"][0])
    if every[0]["type"] == "missing" and len(every[0]["loc"]) == 1:
        expected = str(Settings.model_fields[top].description)
        return Refused(" or ".join(files), f"{top} stands nowhere", expected, "nothing", "README, Settings")
    # Of a union, each member complains under a name of pydantic's own; all of them together are what is expected.
    places = [".".join(str(part) for part in each["loc"] if not MEMBER.fullmatch(str(part))) for each in every]
    about = [each for each, place in zip(every, places, strict=True) if place == places[0]]
    mend, found = "README, Settings", every[0].get("input")
    if origin.get(top) == "--data" and every[0]["type"] == "string_type" and isinstance(found, int | float):
        mend = f"""a number is meant as a text: in quotes, --data '{top}="…"'"""
    expected = " or ".join(SHOULD.sub("", str(each["msg"])) for each in about)
    return Refused(origin[top], f"{places[0]} is not right", expected, repr(found)[:80], mend)


def _check_words(settings: Settings, origin: Mapping[str, str]) -> None:
    scheme, _, rest = settings.image.partition(":")
    name = rest.removeprefix("//").partition("@")[0]
    if scheme not in ("docker-daemon", "docker", "oci", "docker-archive") or not IMAGE.fullmatch(name.lstrip("/")):
        expected = "docker-daemon:name:tag, docker://registry/name:tag or docker://registry/name:tag@sha256:…"
        raise Refused(origin["image"], "image is no image source", expected, repr(settings.image), "README, Settings")
    if in_bytes(settings.bundle_part_size) > FAT32:
        expected, found = f"at most {FAT32} bytes, which FAT32 takes", settings.bundle_part_size
        raise Refused(origin["bundle_part_size"], "bundle_part_size is too large", expected, found, "README, Settings")
    if settings.source == "bundle" and not settings.bundle:
        raise Refused(
            origin["source"], "source bundle needs the bundle's directory", "bundle", "none", "README, Settings"
        )
    for key in ("model_store", "stack", "hf_home", "bundle"):
        path = getattr(settings, key) or "/none"
        if set(path.split("/")[1:]) & {"", ".", ".."}:
            where = origin.get(key, "group_data/all.py")
            raise Refused(where, f"{key} is no plain path", "/a/b without . and ..", repr(path), "README, Settings")


def image_name(source: str) -> str:
    """The plain name and tag of an image source: what the stack's compose file calls it."""
    name = source.partition(":")[2].removeprefix("//").partition("@")[0]
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def in_bytes(text: str) -> int:
    """`64GB` as bytes."""
    number, unit = text[:-2], text[-2:]
    return int(float(number) * 1000 ** (1 + ("kB", "MB", "GB", "TB").index(unit)))


def table() -> str:
    """The README's table of settings."""
    rows = ["| setting | default | what it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "**required**" if field.is_required() else f"`{field.default!r}`"
        rows.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
