"""What is to be done on one host, and why. It is decided here, once; lease, stage, activate and `--dry` read it.

Pure: facts of the host in, a HostPlan out. A host ends as "unchanged" where its plan neither pushes nor switches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.control.rules.compose import environment_of
from tasks.control.rules.drift import confirmed_override, drift, lock_on_host, service_drift, state_of
from tasks.control.rules.units import size
from tasks.control.settings import Settings
from tasks.shared.blobs import missing_blobs
from tasks.shared.errors import Refused
from tasks.shared.facts import HostFacts
from tasks.shared.lock import Lock

SHOWN = 2  # reasons that a dry run tells of a host


@dataclass(frozen=True)
class HostPlan:
    """verify: hash what is there first. push: {sha256: size} that the host lacks. load: bring the image into the engine.

    smoke: run the smoke test. switch: make the service run the release. recreate: recreate its container.
    lease: take the host, or find out who holds it. stage_why, switch_why: the reasons, as sentences.
    """

    verify: bool
    push: Mapping[str, int]
    load: bool
    smoke: bool
    switch: bool
    recreate: bool
    lease: bool
    stage_why: tuple[str, ...]
    switch_why: tuple[str, ...]

    @property
    def stage(self) -> bool:
        """Whether the host must get, prove or test anything before it could serve the release."""
        return self.smoke

    def describe(self) -> str:
        """What would be done and why, for a dry run."""
        words = ["hash what is there"] * self.verify
        if self.push:
            words.append(f"push {size(sum(self.push.values()))}")
        words += ["load the image"] * self.load + ["smoke test"] * self.smoke
        if self.switch:
            words.append("switch to a new container" if self.recreate else "switch")
        why = [reason.partition(". Next:")[0] for reason in [*self.stage_why, *self.switch_why][:SHOWN]]
        return ", ".join(words) + (f" ({'; '.join(why)})" if why else "")

    @property
    def has_nothing_to_do(self) -> bool:
        """Whether a deploy has nothing to do here."""
        return not (self.stage or self.switch or self.lease)


def plan_host(
    facts: HostFacts,
    settings: Settings,
    lock: Lock,
    override: str,
    signatures: Mapping[str, str | None],
    goldens: str | None,
    now: float,
) -> HostPlan:
    """What a deploy of `lock` does on a host with these facts.

    override: the text that staging would write. signatures: {"lock", "goldens"} in git. goldens: their sha256 in
    git, or None before they are made. now: seconds since the epoch.
    """
    stage_why = why_not_staged(facts, lock, override, signatures, goldens)
    switch_why = why_not_active(facts, settings, lock, override)
    verify = bool(settings.verify) or is_unproven(facts, settings, lock, override, now)
    stage = bool(stage_why) or verify
    return HostPlan(
        verify=verify,
        push=missing_blobs(lock.blobs(), facts.store.blobs or {}),
        load=not _image_loaded(facts, lock),
        smoke=stage,
        switch=bool(switch_why),
        recreate=needs_new_container(facts),
        lease=stage or bool(switch_why) or facts.store.lease is not None,
        stage_why=tuple(stage_why),
        switch_why=tuple(switch_why),
    )


# ---------------------------------------------------------------------------------------------------------- staging


def why_not_staged(
    facts: HostFacts, lock: Lock, override: str, signatures: Mapping[str, str | None], goldens: str | None
) -> list[str]:
    """Why this host has not proven this release with this override, as sentences; [] where it has."""
    store, about = facts.store, state_of(facts, lock.id)
    found = []
    if missing := missing_blobs(lock.blobs(), store.blobs or {}):
        found.append(f"{len(missing)} blobs are missing")
    if store.damaged.get(lock.id):
        found.append("files of the release are missing or replaced")
    if lock.id not in (store.releases or []) or lock_on_host(facts, lock.id) is None:
        found.append("the release is not built")
    if store.recreate:
        found.append("its container must be recreated")
    if about.verified is None:
        found.append("its bytes were never hashed here, or the record of that is lost")
    if about.smoke is None and not about.has_candidate:
        found.append("it has not run a smoke test")
    elif about.smoke is None or not about.smoke.ok or about.has_candidate:
        found.append("its last smoke test did not pass")
    if about.override != override:
        found.append("it was tested with other settings")
    if goldens is None:
        found.append("there are no goldens yet")
    elif about.goldens != goldens:
        found.append("it was tested against other goldens")
    if signatures["lock"] and about.signatures != signatures:
        found.append("it has other signatures than git")
    if not _image_loaded(facts, lock):
        found.append("its image is not in the engine")
    if facts.docker and lock.delivery == "online" and lock.volume not in facts.docker.volumes:
        found.append("its volume is missing")
    return found


def _image_loaded(facts: HostFacts, lock: Lock) -> bool:
    if facts.docker is None:
        return False
    return facts.docker.images.get(lock.tag) in lock.image_ids(state_of(facts, lock.id).baked)


def is_stale(facts: HostFacts, lock: Lock, settings: Settings, now: float) -> bool:
    """Whether the last hash of this release is too old (`verify_max_age`) for a switch to rely on it.

    A hash of the future counts as too old: the host's clock was wrong, and nobody knows when that was.
    """
    verified = state_of(facts, lock.id).verified
    return abs(now - (verified.epoch if verified else 0)) > settings.verify_max_age


def is_unproven(facts: HostFacts, settings: Settings, lock: Lock, override: str, now: float) -> bool:
    """Whether the release's bytes must be hashed before anything else.

    True before a switch if the last hash is too old. True also if a file of the release is not the store's blob. A release
    that serves and was hashed once is left to tasks/verify.py.
    """
    if facts.store.damaged.get(lock.id):
        return True
    proven = state_of(facts, lock.id).verified is not None
    serves = not why_not_active(facts, settings, lock, override)
    return is_stale(facts, lock, settings, now) and not (proven and serves)


# -------------------------------------------------------------------------------------------------------- switching


def why_not_active(facts: HostFacts, settings: Settings, lock: Lock, override: str) -> list[str]:
    """Why the service does not run this release now, confirmed, as sentences; [] where it does.

    It looks at the records, the override in place, the container's image, mount and process.
    """
    store, stack, container = facts.store, facts.stack, facts.container
    found = []
    if store.current != lock.id:
        found.append(f"serves {(store.current or 'nothing')[:12]}")
    if store.pending:
        found.append("an earlier switch is not finished")
    if store.not_readmitted:
        found.append("was not readmitted")
    if store.recreate:
        found.append("its container must be recreated")
    in_place = stack.overrides.get(stack.override or "") if stack else None
    if in_place != override:
        found.append("the override beside the stack is another one")
    if state_of(facts, lock.id).confirmed not in (None, override):
        found.append("was confirmed with other settings")
    if (container.release if container else None) != lock.id:
        found.append("its container is of another release")
    return found + service_drift(facts, settings, lock, override)


def needs_new_container(facts: HostFacts) -> bool:
    """Whether the service's container lost a network, a name or its mount. Only a new container gets them back."""
    return facts.container is not None and bool(facts.container.detached)


def what_changes(facts: HostFacts, settings: Settings, lock: Lock, override: str) -> str:
    """What a switch would change where the host serves this release already; "" where it serves another."""
    if facts.store.current != lock.id:
        return ""
    was = confirmed_override(facts, lock.id)
    before, after = (environment_of(text, settings.service) for text in (was, override))
    found = []
    if odd := sorted(key for key in {*before, *after} if before.get(key) != after.get(key)):
        found.append(f"environment: {', '.join(odd)}")
    elif was != override:
        found.append("other settings")
    return "; ".join(found + drift(facts, settings)) or "its service is recreated"


def rollback_target(facts: HostFacts, settings: Settings, asked: str) -> tuple[Lock, str]:
    """Where a rollback goes: the release that was asked for (an id or its beginning), or else the previous one.

    Returns its lock as the host has it, and the override that it was confirmed with. Raises Refused for what is missing.
    """
    store = facts.store
    found = [name for name in store.releases or [] if asked and name.startswith(asked)]
    if asked and len(found) != 1:
        has = ", ".join(name[:12] for name in store.releases or []) or "none"
        raise Refused(
            f"release {asked}",
            "matches no release of this host, or more than one",
            "one of its own",
            has,
            "tasks/status.py",
        )
    chosen = found[0] if found else store.previous
    if not chosen:
        fix = "tasks/rollback.py --data release=ID, or --limit to the hosts that have one; tasks/status.py"
        raise Refused("rollback", "has nowhere to go", "a previous confirmed release", "none", fix)
    lock, override = lock_on_host(facts, chosen), confirmed_override(facts, chosen)
    if lock is None or not environment_of(override, settings.service):
        missing = "lock" if lock is None else "override"
        fix = "deploy.py of that release's lock, which brings it back, or --data release=ID"
        found_text = f"its {missing} is missing or not ours"
        raise Refused(f"releases/{chosen[:12]}", "is not complete", "an activated release", found_text, fix)
    return lock, override
