"""Facts of made-up hosts, as an inspection would find them: one that is fit and empty, and one that serves a release."""

from __future__ import annotations

from dataclasses import is_dataclass, replace
from typing import Any

from tasks.control.rules import compose
from tasks.control.settings import Settings
from tasks.shared.facts import (
    Bundle,
    Container,
    Docker,
    Filesystem,
    HostFacts,
    ReleaseState,
    Smoke,
    Stack,
    Store,
    Verified,
)
from tasks.shared.lock import Lock, lock_text

NOW = 1_000_000.0  # seconds since the epoch, on the control machine
HASHED = NOW - 3600
TOOL = "/srv/models/tool/tool-1.pyz"
OVERRIDE = "docker-compose.override.yml"
PLENTY = 10**12


def filesystem(path: str, device: int, **changes: Any) -> Filesystem:
    whole = Filesystem(path, True, PLENTY, 10**6, False, device, "/")
    return replace(whole, **changes)


def fit_facts(**changes: Any) -> HostFacts:
    """A host that is fit for any release and has none."""
    docker = Docker(filesystem("/var/lib/docker", 2), ["runc"], "2.26.1", {}, [])
    store = Store(
        blobs={},
        incoming={},
        fetching={},
        releases=[],
        damaged={},
        states={},
        locks={},
        lease=None,
        recreate=False,
        pending=None,
        not_readmitted=None,
        frozen=None,
        switching=False,
        confirmed_at=None,
        current=None,
        previous=None,
        tools=[],
        mounted=False,
        devices=[1],
    )
    whole = HostFacts(
        python=[3, 11, 2],
        clock=NOW,
        user=0,
        rsync=True,
        rrsync=True,
        skopeo=True,
        ssh_keygen=True,
        venv=True,
        docker=docker,
        gpus=None,
        signers=None,
        egress=[],
        store_filesystem=filesystem("/srv/models", 1),
        store=store,
        bundle=None,
        stack=Stack(["docker-compose.yml"], OVERRIDE, {}, "docai", ["backend"], {"front": ["backend"]}),
        container=None,
    )
    return replace(whole, **changes)


def release_state(override: str, **changes: Any) -> ReleaseState:
    """What a host keeps of a release that it has proven with this override."""
    smoke = Smoke(True, 1.0, 12.0, 0, {"torch": "2.0"})
    whole = ReleaseState(Verified("then", HASHED), smoke, False, override, override, None, None, None)
    return replace(whole, **changes)


def serving_facts(lock: Lock, settings: Settings, tool: str = TOOL, goldens: str | None = None) -> HostFacts:
    """A host that serves this release, confirmed with these settings. goldens: sha256 of those that it was tested against."""
    text = compose.override(lock, settings, tool, True)
    facts = fit_facts()
    assert facts.docker and facts.stack
    store = replace(
        facts.store,
        blobs=dict(lock.blobs()),
        releases=[lock.id],
        current=lock.id,
        confirmed_at="then",
        locks={lock.id: lock_text(lock.document)},
        states={lock.id: release_state(text, goldens=goldens)},
    )
    container = Container(
        id="c1",
        image=lock.image.ids[0],
        state="running",
        health="healthy",
        restarts=0,
        started="then",
        release=lock.id,
        environment=compose.environment(lock, settings),
        mounts={settings.hf_home: f"{settings.model_store}/releases/{lock.id}"},
        detached=[],
    )
    return replace(
        facts,
        store=store,
        docker=replace(facts.docker, images={lock.tag: lock.image.ids[0]}),
        stack=replace(facts.stack, overrides={OVERRIDE: text}),
        container=container,
    )


def drive(release: str | None = None, exists: bool = True, free: int = PLENTY, parts: Any = None) -> Bundle:
    """A drive at /media/stick, as the bastion sees it."""
    return Bundle(filesystem("/media/stick", 3, exists=exists, free_bytes=free, mount="/media/stick"), parts, release)


def changed(whole: Any, path: str, value: Any) -> Any:
    """A copy of facts with the field at a dotted path replaced: "store.current", "store.states.RELEASE.smoke.ok"."""
    name, _, rest = path.partition(".")
    if is_dataclass(whole) and not isinstance(whole, type):
        inside = changed(getattr(whole, name), rest, value) if rest else value
        return replace(whole, **{name: inside})
    return {**whole, name: changed(whole[name], rest, value) if rest else value}
