"""How what runs on a host strays from what was confirmed there. Pure rules over the host's facts."""

from __future__ import annotations

from tasks.control.rules.compose import environment_of
from tasks.control.settings import Settings
from tasks.shared.blobs import missing_blobs
from tasks.shared.errors import Refused
from tasks.shared.facts import Container, HostFacts, ReleaseState
from tasks.shared.lock import Lock, parse_lock
from tasks.shared.signatures import SIGNERS
from tasks.shared.spaces import embedding_space
from tasks.shared.stack import MARKER

NOTHING_KEPT = ReleaseState(None, None, False, None, None, None, None, None)


def state_of(facts: HostFacts, release_id: str | None) -> ReleaseState:
    """What the host keeps of a release beside its bytes; an empty record where it keeps nothing."""
    return facts.store.states.get(release_id or "", NOTHING_KEPT)


def lock_on_host(facts: HostFacts, release_id: str | None) -> Lock | None:
    """The lock of a release as the host has it. None where it cannot be read, or is another release's."""
    try:
        lock = parse_lock(facts.store.locks.get(release_id or "") or "", "lock.json")
    except Refused:
        return None
    return lock if lock.id == release_id else None


def space_on_host(facts: HostFacts, release_id: str | None = None) -> str:
    """The embedding space of what the host serves by its record, or of `release_id`, which may run there mid-switch.

    An id, "none" where nothing is active, or "unknown" where it cannot be read.
    """
    serves = release_id or facts.store.current
    if not serves:
        return "none"
    lock = lock_on_host(facts, serves)
    return embedding_space(lock) if lock else "unknown"


def confirmed_override(facts: HostFacts, release_id: str) -> str:
    """The override that a release was confirmed with here, or else the one that its smoke test passed with; or "".

    They differ where the release was staged again with other settings, and those were turned down.
    """
    about = state_of(facts, release_id)
    return (about.override or "") if about.confirmed is None else about.confirmed


def condition(container: Container) -> str:
    """The health of a running container, else its state: a stopped one keeps its last health."""
    running = container.state == "running"
    return (container.health if running else None) or container.state


def drift(facts: HostFacts, settings: Settings) -> list[str]:
    """How this host strays from what was confirmed, as sentences; [] is in sync."""
    store, current = facts.store, facts.store.current
    if settings.store_is_mount and not store.mounted:
        return [f"{settings.model_store} is not mounted"]
    if not current:
        return _lost_record(facts, settings)
    lock = lock_on_host(facts, current)
    if lock is None:
        return [f"releases/{current[:12]} is missing or not readable. Next: deploy.py"]
    found, about, override = [], state_of(facts, current), confirmed_override(facts, current)
    if damaged := store.damaged.get(current):
        first = ", ".join(damaged[:3])
        found.append(f"{len(damaged)} files of what it mounts are gone or others: {first}. Next: deploy.py")
    if missing := missing_blobs(lock.blobs(), store.blobs or {}):
        found.append(f"{len(missing)} of its blobs missing or of another size. Next: deploy.py")
    if facts.signers and not about.signatures:
        found.append(f"{SIGNERS} asks for signatures, and what serves here has none")
    in_place = facts.stack.overrides.get(facts.stack.override or "") if facts.stack else None
    if in_place != override:
        found.append("the override beside the stack is not the release's")
    if not about.verified:
        found.append("its bytes are not as they were proven, or the record of that is lost. Next: deploy.py")
    if store.not_readmitted:
        why = store.not_readmitted.get("why")
        found.append(f"was not readmitted: {why}. Next: deploy.py, which does it again")
    if store.frozen:
        found.append(f"is frozen: {store.frozen.get('why')}")
    return found + service_drift(facts, settings, lock, override)


def _lost_record(facts: HostFacts, settings: Settings) -> list[str]:
    """A host without a record of what it serves, on which something of ours runs, or lies beside the stack."""
    overrides = facts.stack.overrides if facts.stack else {}
    ours = any((text or "").startswith(MARKER) for text in overrides.values())
    if ours or (facts.container and facts.container.release):
        return [f"{settings.model_store} has no record of what serves here; is its disk mounted?"]
    return []


def service_drift(facts: HostFacts, settings: Settings, lock: Lock, override: str) -> list[str]:
    """How the service strays from the release and its override: container, image, mount, the environment of its process."""
    container = facts.container
    if not facts.docker:
        return ["no Docker Engine answers, so nobody knows what serves. Next: systemctl start docker"]
    if not container:
        return ["the service has no container"]
    found = [f"the service {what}. Next: deploy.py, which recreates it" for what in container.detached]
    if container.state != "running" or container.health not in (None, "healthy"):
        found.append(f"the service is {condition(container)}")
    if container.image not in lock.image_ids(state_of(facts, lock.id).baked):
        found.append("the service runs another image")
    expected = environment_of(override, settings.service)
    if not expected:
        return [*found, f"state/{lock.short} has no record of its override that can be read"]
    if not lock.is_mounted(settings.model_store, container.mounts, expected["HF_HOME"]):
        found.append("the release is not what is mounted")
    inside = container.environment or {}
    odd = sorted(key for key, value in expected.items() if inside.get(key) != value)
    if odd and container.state == "running":
        found.append(f"the process has another environment: {', '.join(odd)}")
    return found
