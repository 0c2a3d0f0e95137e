"""The facts of a host: what one inspection is asked, and what it finds and prints, as JSON of exactly these fields.

tasks/remote/inspect makes them, on the host. The control machine reads them back (tasks/control/operations/inspecting.py)
and refuses a field that it does not know. None means that a thing is not there or, where the field's comment says so, that
it could not be read: the inspection never guesses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

# pydantic reads this on the control machine; here it is plain data.
STRICT: dict[str, Any] = {"extra": "forbid"}


@dataclass(frozen=True)
class Question:
    """What an inspection is asked: the paths and names that the settings give.

    store, signers: paths. bundle: the directory of a bundle, on a bastion that writes or takes one. stack, service, project:
    the operator's Compose stack on a GPU host; `project` where the operator sets one. egress: the targets ("name:port") that
    must not answer.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    store: str
    signers: str
    bundle: str | None = None
    stack: str | None = None
    service: str | None = None
    project: str | None = None
    egress: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Filesystem:
    """Where a path lies, or would lie: free bytes and inodes (None where the filesystem counts none), device, mount point."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    path: str
    exists: bool
    free_bytes: int
    free_inodes: int | None
    read_only: bool
    device: int
    mount: str


@dataclass(frozen=True)
class Docker:
    """The Docker Engine. `root`: where it keeps its data. `images`: {name:tag: id}. `compose`: the plugin's version."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    root: Filesystem
    runtimes: list[str]
    compose: str | None
    images: dict[str, str]
    volumes: list[str]


@dataclass(frozen=True)
class Gpu:
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    name: str
    driver: str


@dataclass(frozen=True)
class Bundle:
    """The directory of a bundle. `parts`: {name: bytes}, None where unreadable. `release`: what bundle.json names, or None."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    filesystem: Filesystem
    parts: dict[str, int] | None
    release: str | None


@dataclass(frozen=True)
class Stack:
    """The operator's Compose stack.

    files: the names of its compose files, first the one that Compose takes; [] where there is none.
    override: the name that our override has beside that file, None without one. overrides: {name: text} of every override
    that is there, the text None where it cannot be read. project: None where neither Compose nor the operator says it.
    services: None where `docker compose config` refuses the file, [] without a file.
    networks: {network: [what the service is called on it]} of the service, as Compose would make them.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    files: list[str]
    override: str | None
    overrides: dict[str, str | None]
    project: str | None
    services: list[str] | None
    networks: dict[str, list[str]]


@dataclass(frozen=True)
class Container:
    """The service's container. `environment`: that of its process, None where it does not run or cannot be read.

    mounts: {path inside: source, or None}. detached: what it should have and has lost, as sentences that follow "the
    service": its networks, its names on them, the release's directory that it has mounted.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    id: str
    image: str
    state: str
    health: str | None
    restarts: int
    started: str
    release: str | None
    environment: dict[str, str] | None
    mounts: dict[str, str | None]
    detached: list[str]


@dataclass(frozen=True)
class Verified:
    """When every byte of a release was hashed on this host: UTC, ISO 8601, and seconds since the epoch."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    at: str
    epoch: float


@dataclass(frozen=True)
class Smoke:
    """What a smoke test said. cosine: mean against the goldens. latency_ms: median of one page's forward."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    ok: bool
    cosine: float | None
    latency_ms: float | None
    outbound_attempts: int
    versions: dict[str, str] | None


@dataclass(frozen=True)
class ReleaseState:
    """What this host keeps of one release, beside its bytes.

    has_candidate: files of a smoke test lie there that has not passed: nobody has run it, it runs, or it failed.
    override: the one that its last passed smoke test used. confirmed: the one that it was last confirmed with, or None.
    baked: the digests of the image that was baked here, or None. signatures: {"lock", "goldens": signature or None}, or None.
    goldens: sha256 of the goldens that it keeps, or None.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    verified: Verified | None
    smoke: Smoke | None
    has_candidate: bool
    override: str | None
    confirmed: str | None
    baked: dict[str, Any] | None
    signatures: dict[str, str | None] | None
    goldens: str | None


@dataclass(frozen=True)
class Store:
    """The store. Sets of files are {name: size in bytes}; None where the directory cannot be read, {} where it is missing.

    damaged: {release: [files of its cache that are gone, of another size, or not the store's blob]}.
    lease: the note of who holds this host; {} where it is held and the note is gone; None where nobody holds it.
    pending, not_readmitted, frozen: a record that counts by being there; {"why": …} where its text is none of ours.
    switching: a switch is under way now. confirmed_at: when the current release was confirmed, or None.
    devices: the devices that its directories lie on. tools: the tools that are there whole.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    blobs: dict[str, int] | None
    incoming: dict[str, int] | None
    fetching: dict[str, int] | None
    releases: list[str] | None
    damaged: dict[str, list[str]]
    states: dict[str, ReleaseState]
    locks: dict[str, str | None]
    lease: dict[str, Any] | None
    recreate: bool
    pending: dict[str, Any] | None
    not_readmitted: dict[str, Any] | None
    frozen: dict[str, Any] | None
    switching: bool
    confirmed_at: str | None
    current: str | None
    previous: str | None
    tools: list[str]
    mounted: bool
    devices: list[int]


@dataclass(frozen=True)
class HostFacts:
    """Everything about one host.

    clock: seconds since the epoch. user: the effective uid. rsync, rrsync, skopeo, ssh_keygen, venv: whether it is there.
    gpus: None where no nvidia-smi answers. egress: the forbidden targets that answered. signers: [(path, uid, mode)] of
    the list of allowed signers and of each directory above it, None without that file. stack: None on a bastion.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    python: list[int]
    clock: float
    user: int
    rsync: bool
    rrsync: bool
    skopeo: bool
    ssh_keygen: bool
    venv: bool
    docker: Docker | None
    gpus: list[Gpu] | None
    signers: list[tuple[str, int, int]] | None
    egress: list[str]
    store_filesystem: Filesystem
    store: Store
    bundle: Bundle | None
    stack: Stack | None
    container: Container | None
