"""What one run knows of one host: its settings, its facts, its plan, what was proven in this run, and its row of the report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from tasks.control.command_line import CommandLine, printable
from tasks.control.rules.plan import HostPlan
from tasks.control.rules.states import State
from tasks.control.settings import Settings
from tasks.shared.facts import HostFacts


class Role(Enum):
    BASTION = "bastion"
    GPU = "gpu"


class Evidence(Enum):
    """What a gate waits for: seen to come true on a host in this run, or found to be true already."""

    FIT = "fit"
    LEASED = "leased"
    PROVEN = "proven"
    STAGED = "staged"
    CONFIRMED = "confirmed"
    INTACT = "intact"
    AGREED = "agreed"


@dataclass
class Phase:
    """One phase of a host on the timeline. `start`, `end`: seconds since the epoch. `ok`: it did what it is for."""

    phase: str
    start: float
    end: float = 0.0
    ok: bool = False


def shown(doc: str) -> Any:
    """A field of the report. `doc` says what it is, with its unit."""
    return field(default=None, metadata={"doc": doc})


@dataclass
class HostReport:
    """A host's row in the report. reports/last.json has exactly these fields; None is "not known" or "not in this run"."""

    role: str = shown("`bastion` or `gpu`")
    state: str = shown("one of the states in docs/troubleshooting.md")
    good: bool = shown("whether that state is good news")
    not_readmitted: bool = shown("the host serves, and its `readmit` failed")
    why: str = shown("the reason, for people, with the next command")
    wave: int | None = shown("the host's wave, from 1")
    release: str | None = shown("the release that the host serves")
    from_release: str | None = shown("the release that it served before the run")
    previous: str | None = shown("the release that tasks/rollback.py would go to")
    kept: list[str] | None = shown("other releases that the host has")
    since: str | None = shown("when what it serves was confirmed")
    space: str | None = shown('the embedding space that it answers in: an id, "none" or "unknown"')
    from_space: str | None = shown("the embedding space before the run")
    to_space: str | None = shown("the embedding space of the release that the run is about")
    container: str | None = shown("the health of the service's container")
    gpu: str | None = shown("its GPUs and their driver")
    disk_free_bytes: int | None = shown("bytes free on the store's filesystem")
    lease: str | None = shown("who holds the host")
    other_settings: bool | None = shown("it was confirmed with other settings than git has")
    total_bytes: int | None = shown("bytes of the release")
    there_bytes: int | None = shown("bytes of it that were there before the run")
    moved_bytes: int | None = shown("bytes of it that this run moved")
    sent_bytes: int | None = shown("bytes on the wire for that")
    loaded_bytes: int | None = shown("bytes that the host loaded itself (delivery `online`)")
    verified: str | None = shown("when every byte of the release was hashed here")
    repaired: list[str] | None = shown("blobs that were damaged and came again")
    cosine: float | None = shown("mean cosine of the smoke test with the goldens")
    served_cosine: float | None = shown("lowest mean cosine of the golden queries through the switched service")
    latency_ms: float | None = shown("milliseconds of the smoke test's median page")
    outbound_attempts: int | None = shown("attempts of the smoke test to reach a network")
    versions: dict[str, str] | None = shown("versions in the container")
    changes: str | None = shown("what changes on a host that has the release already")
    seconds: float | None = shown("seconds in all phases")
    switch_seconds: float | None = shown("seconds of the switch")
    hashed_bytes: int | None = shown("bytes that tasks/verify.py or tasks/contents.py hashed")
    freed_bytes: int | None = shown("bytes that tasks/prune.py freed in the store")
    docker_freed_bytes: int | None = shown("bytes that it freed in Docker, at most")
    bundle_bytes: int | None = shown("bytes of the bundle")
    bundle_parts: int | None = shown("parts of the bundle")
    written_bytes: int | None = shown("bytes that were written to the drive")
    blob_count: int | None = shown("blobs in the store")
    phases: list[Phase] = field(default_factory=list, metadata={"doc": "[{phase, start, end, ok}], epoch seconds"})


@dataclass(frozen=True)
class Serving:
    """What was confirmed on a host, by which it is known again: release, container, its start, its networks, environment."""

    release: str
    container: str
    started: str
    networks: list[str]
    environment: dict[str, str]


@dataclass
class HostRun:
    """One host in one run. `target`: pyinfra's host object. `command_line` completes the commands in messages."""

    name: str
    role: Role
    target: Any
    settings: Settings
    command_line: CommandLine
    in_limit: bool = True
    out_of_service: str | None = None
    wave: int | None = None
    # what the inspection found: the version of its Python, and the facts where that is new enough
    inspected: bool = False
    asked: bool = False  # it gave an answer
    python: list[int] | None = None
    facts: HostFacts | None = None
    space: str = "unknown"  # the embedding space that it answers in, by its record
    tools: list[str] = field(default_factory=list)
    # what a deploy does here; decided once
    plan: HostPlan | None = None
    # what happened
    state: State = State.INCOMPLETE
    not_readmitted: bool = False
    why: str = ""
    evidence: set[Evidence] = field(default_factory=set)
    lease: str | None = None
    goes_to: str | None = None  # the release that a rollback takes it to
    made_of: dict[str, Any] | None = None  # what the release is made of, for the report
    recreate: bool = False  # the host itself says that its container must be recreated
    serving: Serving | None = None
    switched: bool = False
    regressed: bool = False  # it runs the new release, and not as it should: its readmit or its recheck failed
    taken_back: bool = False
    report: HostReport = field(default_factory=HostReport)
    running: Phase | None = None

    def says(self, state: State, why: str = "") -> None:
        """Record the host's state and its reason. What the reason says to run next can be pasted."""
        self.state = state
        self.explain(why)

    def explain(self, why: str) -> None:
        self.why = printable(self.command_line.complete(why).removeprefix(f"{self.name}: "))

    def claim_nothing(self) -> None:
        """What was inspected before is gone, and nobody knows what serves now."""
        self.report.release = self.report.since = self.report.container = None
        self.report.space = "unknown"

    def has(self, evidence: Evidence) -> bool:
        return evidence in self.evidence

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """One phase of this host, for the timeline. Who works in it sets `ok`. Without a name only its time counts."""
        self.running = Phase(name, time.time())
        try:
            yield self.running
        finally:
            self.end_phase()

    def end_phase(self) -> str:
        """End the phase that the host is in, if any; return its name. A run that is stopped ends it half-way."""
        if self.running is None:
            return ""
        done, self.running = replace(self.running, end=time.time()), None
        self.report.seconds = round((self.report.seconds or 0) + done.end - done.start, 1)
        if done.phase:
            rounded = replace(done, start=round(done.start, 2), end=round(done.end, 2))
            self.report.phases.append(rounded)
        return done.phase
