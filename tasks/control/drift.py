"""What a host serves, and whether it is what it should be: pure rules over what `remote/look.py` saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tasks.control.compose import environment_of
from tasks.control.preflight import Seen, lacking
from tasks.control.settings import Settings
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock, parse_lock
from tasks.shared.signatures import SIGNERS
from tasks.shared.spaces import embedding_space
from tasks.shared.stack import MARKER


def staged(seen: Seen, lock: Lock, override: str, signatures: Mapping[str, Any], goldens: str | None) -> bool:
    """Whether this host has proven this very release with this very override before: nothing to push, admit or smoke.

    Nor to bring: its goldens are those of git (`goldens`: their sha256), and where the lock is signed, its signatures.
    """
    about = seen["store"]["states"].get(lock.id) or {}
    smoke = about.get("smoke") or {}
    return (
        not lacking(seen, lock)
        and not seen["store"]["lost"].get(lock.id)
        and locked_here(seen, lock.id) is not None
        and lock.id in (seen["store"]["releases"] or [])
        and not seen["store"]["recreate"]
        and bool(about.get("verified"))
        and smoke.get("ok") is True
        and not about.get("candidate")
        and about.get("override") == override
        and (goldens is None or about.get("goldens") == goldens)
        and (not signatures["lock"] or about.get("signed") == signatures)
        and bool(seen["docker"])
        and seen["docker"]["images"].get(lock.tag) in lock.image_ids(about.get("baked"))
        and (lock.delivery != "online" or lock.volume in seen["docker"]["volumes"])
    )


def active(seen: Seen, settings: Settings, lock: Lock, override: str) -> bool:
    """Whether the service runs this release now, confirmed: record, override in place, image, mount, the process itself."""
    store, stack = seen["store"], seen.get("stack") or {}
    return (
        store["current"] == lock.id
        and not store["pending"]
        and not store["away"]
        and not store["recreate"]
        and (stack.get("overrides") or {}).get(stack.get("override")) == override
        and (store["states"].get(lock.id) or {}).get("confirmed") in (None, override)
        and (seen.get("container") or {}).get("release") == lock.id
        and _service(seen, settings, lock, override) == []
    )


def stale(seen: Seen, lock: Lock, settings: Settings, now: float) -> bool:
    """Whether the last hash of this release is too old (`verify_max_age`) for it to be activated on its word.

    As old is one of the future: the host's clock was wrong, and nobody knows when that was.
    """
    verified = (seen["store"]["states"].get(lock.id) or {}).get("verified") or {}
    return abs(now - verified.get("epoch", 0)) > settings.verify_max_age


def unproven(seen: Seen, settings: Settings, lock: Lock, override: str, now: float) -> bool:
    """Whether the release's bytes are to be hashed before it is activated, or as the host has lost its word of them.

    What is active and was proven once is left to tasks/verify.py. What is another file than was proven is hashed before
    anything is linked to it.
    """
    if seen["store"]["lost"].get(lock.id):
        return True
    proven = bool((seen["store"]["states"].get(lock.id) or {}).get("verified"))
    return stale(seen, lock, settings, now) and not (proven and active(seen, settings, lock, override))


def as_asked(
    seen: Seen,
    settings: Settings,
    lock: Lock,
    override: str,
    signatures: Mapping[str, Any],
    goldens: str | None,
    now: float,
) -> bool:
    """Whether a deploy of this lock has nothing to do here."""
    fresh = not settings.verify and not stale(seen, lock, settings, now)
    return fresh and staged(seen, lock, override, signatures, goldens) and active(seen, settings, lock, override)


def locked_here(seen: Seen, release_id: str | None) -> Lock | None:
    """The lock of a release as the host itself has it, or None where that cannot be read or is another release's."""
    try:
        lock = parse_lock((seen["store"]["locks"] or {}).get(release_id) or "", "lock.json")
    except Refused:
        return None
    return lock if lock.id == release_id else None


def space_of(seen: Seen, release_id: str | None = None) -> str:
    """The embedding space that the host answers in: an id, "none" where nothing is active, "unknown" where unreadable.

    That of its record, or of `release_id`, which may run there in the middle of a switch.
    """
    found = release_id or seen["store"]["current"]
    if not found:
        return "none"
    lock = locked_here(seen, found)
    return embedding_space(lock) if lock else "unknown"


def told(seen: Seen | None, settings: Settings) -> dict[str, Any]:
    """What the report says of a host before anything is done to it."""
    if not seen or "container" not in seen:
        return {}
    store, container, lease = seen["store"], seen["container"] or {}, seen["store"]["lease"]
    # Not what the record says, but what runs.
    serves = container.get("release") if container.get("state") == "running" else None
    gpu = (seen["gpus"] or [None])[0]
    return {
        "release": serves,
        "from": store["current"],
        "since": store["since"],
        "space": space_of(seen, serves),
        "from_space": space_of(seen),
        "container": condition(container) + _restarts(container) if container else None,
        "gpu": f"{len(seen['gpus'])} x {gpu['name']}, driver {gpu['driver']}" if gpu else None,
        "disk_free_bytes": seen["store_filesystem"]["free_bytes"],
        "kept": [name for name in store["releases"] or [] if name not in (store["current"], serves)],
        "previous": store["previous"],
        "lease": None if lease is None else leased(lease),
    }


def leased(lease: Seen) -> str:
    if not lease:
        return "unknown: lease.json is gone, and the process in .lease.lock lives"
    return f"{lease.get('id')} of {lease.get('who')}, {lease.get('why')} since {lease.get('since')}"


def condition(container: Seen) -> str:
    """A stopped container keeps its last health; what it is now is what counts."""
    running = container["state"] == "running"
    return str((container["health"] if running else None) or container["state"])


def _restarts(container: Seen) -> str:
    """Between two deaths a service that crashes in a loop is healthy."""
    count = container.get("restarts") or 0
    return f", {count} restart{'s' * (count != 1)}" if count else ""


def proof(seen: Seen, release_id: str | None) -> dict[str, Any]:
    """What a release was proven with on this host: its last hashing and its smoke test."""
    about = (seen["store"]["states"] or {}).get(release_id) or {}
    return {"verified": (about.get("verified") or {}).get("at"), **smoked(about.get("smoke") or {})}


def smoked(smoke: Seen) -> dict[str, Any]:
    """What the report says of a smoke test, of this run or kept by a host."""
    return {
        "cosine": (smoke.get("cosine") or {}).get("mean"),
        "latency_ms": (smoke.get("latency_ms") or {}).get("page"),
        "versions": smoke.get("versions"),
    }


def space_problem(seen: Seen, lock: Lock, settings: Settings, at_once: Callable[[], bool]) -> list[str]:
    """Two releases of different embedding spaces may not answer one index, unless the operator has said how.

    `at_once` says whether all hosts that answer in another space move together; it may have to look at them.
    """
    here, there = space_of(seen), embedding_space(lock)
    if seen["store"]["current"] == lock.id:
        return []  # the same release, even where the host has lost its own lock of it
    if here in ("none", there) or settings.embedding_space_change == "mixed-accepted":
        return []
    if (settings.drain and settings.readmit) or at_once():
        return []
    one = 'one wave for all (waves = ["100%"], no host with a `wave` of its own, max_failed_hosts = 0, no --limit)'
    mend = f'{one}, or `drain` and `readmit`, or embedding_space_change = "mixed-accepted"'
    return [f"answers in embedding space {here}; the release's is {there}, and waves would mix them. Next: {mend}"]


def together(plan: Sequence[Sequence[str]], spaces: Mapping[str, str], there: str) -> bool:
    """Whether one wave takes every host that is not in the space `there` yet: {host: space} of the whole fleet.

    The others may be there already: then the fleet is mixed as it stands, and that wave is its end.
    """
    behind = {name for name, here in spaces.items() if here != there}
    return any(behind <= set(wave) for wave in plan)


def target(seen: Seen, settings: Settings, asked: str) -> tuple[Lock, str]:
    """Where a rollback goes: the release that was asked for (an id or its beginning), else the previous confirmed one.

    -> its lock as the host has it, and the override that it was confirmed with. Refused: what the host lacks.
    """
    store = seen["store"]
    found = [name for name in store["releases"] or [] if asked and name.startswith(asked)]
    if asked and len(found) != 1:
        has = ", ".join(name[:12] for name in store["releases"] or []) or "none"
        raise Refused(f"release {asked}", "is not one release of this host", "one of its own", has, "tasks/status.py")
    chosen = found[0] if found else store["previous"]
    if not chosen:
        mend = "tasks/rollback.py --data release=ID, or --limit to the hosts that have one; tasks/status.py"
        raise Refused("rollback", "has nowhere to go", "a previous confirmed release", "none", mend)
    lock = locked_here(seen, chosen)
    override = confirmed(seen, chosen)
    if lock is None or not environment_of(override, settings.service):
        lacks = "its lock" if lock is None else "its override"
        raise Refused(
            f"releases/{chosen[:12]}",
            "is not complete",
            "an activated release",
            f"no {lacks}, or not ours",
            "deploy.py of that release's lock, which brings it back, or --data release=ID",
        )
    return lock, override


def confirmed(seen: Seen, release_id: str) -> str:
    """The override that a release was confirmed with on this host, else the one that its smoke test passed with; or "".

    They differ where the release was staged again with other settings that were then turned down.
    """
    about = seen["store"]["states"].get(release_id) or {}
    was = about.get("confirmed")
    return (about.get("override") or "") if was is None else was


def changes(seen: Seen, settings: Settings, lock: Lock, override: str) -> str:
    """What a switch to this release would change where it serves already; "" where it is the release itself."""
    current = seen["store"]["current"]
    if current != lock.id:
        return ""
    was = confirmed(seen, current)
    before, after = (environment_of(text, settings.service) for text in (was, override))
    odd = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
    found = [f"environment: {', '.join(odd)}"] if odd else ["other settings"] if was != override else []
    return "; ".join(found + drift(seen, settings)) or "its service is made anew"


def drift(seen: Seen, settings: Settings) -> list[str]:
    """How what runs strays from what was confirmed, as sentences; [] is in order."""
    store, current = seen["store"], seen["store"]["current"]
    if settings.store_is_mount and not store["mounted"]:
        return [f"{settings.model_store} is not mounted"]
    if not current:
        overrides = (seen.get("stack") or {}).get("overrides") or {}
        ours = any((text or "").startswith(MARKER) for text in overrides.values())
        lost = ours or (seen.get("container") or {}).get("release")
        return [f"{settings.model_store} has no record of what serves here; is its disk mounted?"] if lost else []
    lock, found = locked_here(seen, current), []
    if lock is None:
        return [f"releases/{current[:12]} is missing or not readable. Next: deploy.py"]
    have = store["blobs"] or {}
    wrong = [name for name, size in lock.blobs().items() if have.get(name) != size]
    if lost := store["lost"].get(current):
        gone = ", ".join(lost[:3])
        found.append(f"{len(lost)} files of what it mounts are gone or others: {gone}. Next: deploy.py")
    if wrong:
        found.append(f"{len(wrong)} of its blobs missing or of another size. Next: deploy.py")
    if seen["signers"] and not (store["states"].get(current) or {}).get("signed"):
        found.append(f"{SIGNERS} asks for signatures, and what serves here has none")
    override = confirmed(seen, current)
    stack = seen.get("stack") or {}
    if (stack.get("overrides") or {}).get(stack.get("override")) != override:
        found.append("the override beside the stack is not the release's")
    if not (store["states"].get(current) or {}).get("verified"):
        found.append("its bytes are not as they were proven, or the record of that is lost. Next: deploy.py")
    if store["away"]:
        found.append(f"was not readmitted: {store['away'].get('why')}. Next: deploy.py, which does it again")
    if store["frozen"]:
        found.append(f"is frozen: {store['frozen'].get('why')}")
    return found + _service(seen, settings, lock, override)


def _service(seen: Seen, settings: Settings, lock: Lock, override: str) -> list[str]:
    container = seen.get("container")
    if not seen["docker"]:
        return ["no Docker Engine answers, so nobody knows what serves. Next: systemctl start docker"]
    if not container:
        return ["the service has no container"]
    found = [f"the service {what}. Next: deploy.py, which makes it anew" for what in container["torn"]]
    if container["state"] != "running" or container["health"] not in (None, "healthy"):
        found.append(f"the service is {condition(container)}")
    about = seen["store"]["states"].get(lock.id) or {}
    if container["image"] not in lock.image_ids(about.get("baked")):
        found.append("the service runs another image")
    expected = environment_of(override, settings.service)
    if not expected:
        return [*found, f"state/{lock.short} has no record of its override that can be read"]
    if not lock.is_mounted(settings.model_store, container["mounts"], expected["HF_HOME"]):
        found.append("the release is not what is mounted")
    inside: Mapping[str, str] = container["process"] or {}
    odd = sorted(key for key, value in expected.items() if inside.get(key) != value)
    if odd and container["state"] == "running":
        found.append(f"the process has another environment: {', '.join(odd)}")
    return found
