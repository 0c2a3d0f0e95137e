"""The operator's settings: every key, its type, its default, and what it does.

docs/settings.md is made from the descriptions here (manual.py). How values are collected from
group_data, inventory and --data stands in settings_layers.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tasks.shared.names import REPO

# Paths, users and hosts become words of commands elsewhere. They are quoted there, and still kept plain here. Each class is
# spelt out: \w and \d would let other letters of Unicode in, and take half a second to compile.
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9_.@+/-]*[A-Za-z0-9_.@+-]$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}$")]
Project = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]  # Compose's own rule
Count = Annotated[int, Field(gt=0)]
Seconds = Annotated[int, Field(gt=0, le=7 * 86400)]
Wave = Annotated[int, Field(gt=0)] | Annotated[str, StringConstraints(pattern=r"^(100|[1-9][0-9]?)%$")]
Bytes = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,5}(\.[0-9]{1,3})?(kB|MB|GB|TB)$")]
Target = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:\[\]-]+:[0-9]{1,5}$")]
Floors = Annotated[list[float], Field(min_length=2, max_length=2)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Model(Strict):
    """One repository of the Hub, and the branch, tag or commit to lock."""

    repo: Annotated[str, StringConstraints(pattern=f"^{REPO.pattern}$")]
    revision: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]{0,199}$")]


class Probe(Strict):
    """How to embed through the running service. The backend's API is the operator's own."""

    url: Annotated[str, StringConstraints(pattern=r"^https?://")]
    body: dict[str, Any]
    answer: str
    at_least: Annotated[float, Field(gt=0, le=1)] = 0.99


class Settings(Strict):
    """The settings of one host. A default stands beside each key that has one."""

    # Model and image
    lock: Name = Field(description="The lock's file name in `group_data/locks/`, without `.json`.")
    models: list[Model] = Field(min_length=1, description="Repositories to lock. The service loads the first one.")
    image: str = Field(
        description="The backend image: `docker-daemon:name:tag` of the bastion's engine, or `docker://registry/name:tag`."
    )
    family: Literal["colpali", "colqwen2", "colqwen2.5", "colsmol", "custom"] = Field(
        "colpali",
        description="How the smoke test loads the model. `custom` is any repository, tested by `smoke_command`.",
    )
    smoke_command: list[str] = Field(
        [], description="For family `custom`: the command, in the container, that says whether the model works."
    )
    delivery: Literal["mount", "bake", "online"] = Field(
        "mount",
        description="How the model reaches the service: `mount` the host's cache, `bake` it into the image as a layer, or "
        "`online`: each host loads it once. Part of the release. See docs/deliveries.md.",
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="The number format of the weights. Part of the release."
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="The attention implementation. Goldens depend on it. Part of the release."
    )
    image_processor: Literal["default", "torchvision", "pil"] = Field(
        "default",
        description="What scales pages (once `use_fast`). `default` is transformers' own choice. `torchvision` and `pil` are "
        "part of the release and of its embedding space. The smoke test uses them; the service is told by "
        "`IMAGE_PROCESSOR`, which an app must read.",
    )
    # Hub and bastion
    hub: str = Field("https://huggingface.co", pattern=r"^https?://", description="The Hub, or a mirror of it.")
    token_variable: Name = Field(
        "HF_TOKEN",
        description="The control machine's environment variable with a read-only token, for gated models.",
    )
    xet: Literal["on", "off", "silent"] = Field(
        "on",
        description="Xet transfers at fetch. `off` needs one host fewer on the bastion's allow-list. `silent` fetches by Xet, "
        "and keeps a container without hf_xet from warning.",
    )
    ca_bundle: AbsolutePath | None = Field(
        None, description="For delivery `online`: the host's CA bundle, where the mirror has a private certificate."
    )
    fetch_deadline: Seconds = Field(
        14400, description="Seconds for all downloads together, and for writing or reading a bundle."
    )
    # Bundle on a drive
    source: Literal["hub", "bundle"] = Field(
        "hub", description="Where the bastion gets a release: from the Hub, or from a `bundle` on a drive."
    )
    bundle: AbsolutePath | None = Field(
        None, description="The bundle's directory on the bastion: a mounted drive, as `/media/stick`."
    )
    bundle_part_size: Bytes = Field(
        "1GB",
        description="Larger blobs are split. FAT32 takes files below 4 GiB. A damaged part alone is written again.",
    )
    bundle_capacity: Bytes = Field("64GB", description="The size of the drive that carries the bundle.")
    bundle_python: str = Field(
        "3.11",
        pattern=r"^3\.[1-9][0-9]$",
        description="The Python of the far control machine, for the wheels in the bundle.",
    )
    # Host and stack
    model_store: AbsolutePath = Field("/srv/models", description="The store's path, on the bastion and on each host.")
    store_is_mount: bool = Field(
        False, description="Stop where the store's own disk is not mounted, rather than fill the root disk."
    )
    stack: AbsolutePath = Field("/srv/docai", description="The directory of the stack's compose file.")
    project: Project | None = Field(None, description="The Compose project's name. By default Compose chooses.")
    service: Name = Field("backend", description="The service of the stack that embeds.")
    hf_home: AbsolutePath = Field(
        "/models/hf", description="Where the container sees the release. It becomes `HF_HOME`."
    )
    environment: dict[str, str] = Field({}, description="More environment for the service and the smoke test.")
    python: str = Field(
        "python3", pattern=r"^[A-Za-z0-9_./-]+$", description="The Python in the image that has colpali-engine."
    )
    gpus: Literal["all"] | Annotated[int, Field(ge=0)] = Field(
        "all", description="GPUs for the service and the smoke test. 0 is a CPU host."
    )
    min_driver: str | None = Field(None, description="The lowest NVIDIA driver that the image needs, as `550.54`.")
    harden: bool = Field(
        False, description="Run the *service* read-only and without capabilities, too. The smoke test always is."
    )
    egress: list[Target] = Field(
        ["huggingface.co:443"], description="`name:port` that a GPU host must not reach. `[]` skips the check."
    )
    # Push
    push_parallel: Count = Field(6, description="Hosts that receive at once.")
    push_user: Name = Field(
        "hfpush",
        description="The user on each host that can write below `incoming/` and nothing else. Two stores on one host need two.",
    )
    push_address: str | None = Field(None, description="The host's address as the bastion sees it, if it is another.")
    push_port: Annotated[int, Field(gt=0, lt=65536)] | None = Field(None, description="Its ssh port there, if another.")
    push_from: str | None = Field(
        None, description="The bastion's address as the host sees it, behind NAT. `*` is any address."
    )
    bandwidth_limit: int = Field(0, ge=0, description="KiB/s for each host's push. 0 is no limit.")
    push_deadline: Seconds = Field(14400, description="Seconds for one host's push, with its retries.")
    # Proof
    smoke_deadline: Seconds = Field(900, description="Seconds for the smoke test of one host.")
    tolerance: dict[str, Floors] = Field(
        {}, description="Lowest cosines [mean, 1st percentile] by class, as `{'cuda/bfloat16': [0.999, 0.99]}`."
    )
    probe: Probe | None = Field(
        None,
        description="An embedding through the running service: `url`, `body`, `answer`, `at_least`. See docs/production.md.",
    )
    verify_max_age: Annotated[int, Field(ge=0)] = Field(
        604800, description="Seconds. Before a switch, a release is hashed again when its last hash is older."
    )
    sign: bool = Field(
        False, description="Stop where lock and goldens are not signed, or a host does not say who may sign."
    )
    # Rollout
    waves: list[Wave] = Field(
        [1, "100%"], min_length=1, description="Hosts that are switched together: numbers, or shares of the hosts."
    )
    wave: Annotated[int, Field(gt=0)] | None = Field(
        None, description="On a host: its wave, from 1. Hosts without one follow those with one."
    )
    out_of_service: str | None = Field(None, description="On a host: why it is left out for now.")
    max_failed_hosts: Annotated[int, Field(ge=0)] = Field(0, description="Failed hosts that do not stop a rollout.")
    on_failure: Literal["stop", "withdraw-wave", "withdraw-all"] = Field(
        "stop",
        description="After too many failed hosts: earlier switches stay, or those of the wave go back, or all go back.",
    )
    rollback_waves: list[Wave] = Field(["100%"], min_length=1, description="As `waves`, for tasks/rollback.py.")
    embedding_space_change: Literal["refused", "mixed-accepted"] = Field(
        "refused", description="Whether waves may serve two embedding spaces for a while."
    )
    drain: str = Field("", description="Shell command on a host before its switch: take it out of the load balancer.")
    readmit: str = Field("", description="Shell command on a host after its switch or its withdrawal.")
    health_deadline: Seconds = Field(
        600, description="Seconds for the service to become healthy. Then the host goes back."
    )
    soak: Annotated[int, Field(ge=0)] = Field(
        30, description="Seconds that the switched service must stay up, without a restart, before it is confirmed."
    )
    confirm_deadline: Seconds = Field(
        60, description="Seconds for a new connection to confirm the switch. Then the host goes back."
    )
    keep_releases: Annotated[int, Field(ge=1)] = Field(3, description="Releases that tasks/prune.py keeps on a host.")
    # For one command, as --data
    verify: Literal["", "full"] = Field("", description="`--data verify=full` for deploy.py: hash everything again.")
    update: bool = Field(False, description="`--data update=true` for tasks/lock.py: follow branches that moved.")
    accept_goldens_from: str = Field("", description="For tasks/lock.py: the host whose embeddings become goldens.")
    release: str = Field(
        "", pattern=r"^[0-9a-f]{0,64}$", description="For tasks/rollback.py: another release than the previous one."
    )
    lease: str = Field("", pattern=r"^(x[0-9a-f]{8})?$", description="For tasks/unlock.py: the lease's id.")
    sample: Annotated[int, Field(ge=1, le=100)] = Field(
        100, description="For tasks/verify.py: percent of the bytes, as a random sample of blobs."
    )
    contents: str = Field(
        "", description="For tasks/bundle.py: the far side's contents.json. What it names is not carried again."
    )


# The subject of each group of settings, by the first of its keys.
GROUPS = {
    "lock": "Model and image",
    "hub": "Hub and bastion",
    "source": "Bundle on a drive",
    "model_store": "Host and stack",
    "push_parallel": "Push",
    "smoke_deadline": "Proof",
    "waves": "Rollout",
    "verify": "For one command, as --data",
}


def table() -> str:
    """The manual's tables of settings, one for each subject."""
    rows = []
    for name, field in Settings.model_fields.items():
        if name in GROUPS:
            rows += ["", f"## {GROUPS[name]}", "", "| setting | default | what it does |", "|---|---|---|"]
        default = "**required**" if field.is_required() else f"`{field.default!r}`"
        rows.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(rows[1:])
