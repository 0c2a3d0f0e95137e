"""One run of one command: its hosts, its lock and goldens, its waves, its sessions and leases. There is one object a run.

pyinfra loads a command once for each host. All of them get the same Run from `opening.open_run`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.control.command_line import CommandLine
from tasks.control.git.goldens import Goldens
from tasks.control.host_run import Evidence, HostRun
from tasks.control.leases import Leases
from tasks.control.rules.spaces import moves_at_once
from tasks.control.rules.waves import waves as split
from tasks.control.settings import Settings
from tasks.control.ssh import Sessions
from tasks.control.tool import Tool
from tasks.control.transports.protocol import Transport
from tasks.shared.lock import Lock
from tasks.shared.spaces import embedding_space


@dataclass
class Run:
    """`hosts`: every host of the run by name: those of --limit, those out of service, and always the bastion.

    failed_in_pyinfra: says which hosts pyinfra has dropped. fleet: every GPU host of the inventory that is in service.
    """

    command_line: CommandLine
    bastion: HostRun
    hosts: Mapping[str, HostRun]
    fleet: Sequence[str]
    transport: Transport
    failed_in_pyinfra: Callable[[], set[str]] = set
    is_executing: Callable[[], bool] = lambda: True
    sessions: Sessions = field(default_factory=Sessions)
    leases: Leases = field(default_factory=Leases)
    tool: Tool = field(default_factory=Tool)
    clock: Callable[[], float] = time.time
    lock: Lock | None = None  # of a command that is about one release
    kept_lock: Lock | None = None  # whose blobs tasks/prune.py keeps
    is_rollout: bool = False  # it switches hosts, in `waves`
    waves: list[list[str]] = field(default_factory=list)  # host names; of a rollout
    lock_in_git: str | None = None  # the release that a report holds the hosts against
    reported: list[str] = field(default_factory=list)  # the hosts that the report is about
    # A letter first: pyinfra reads `--data lease=12345678` as a number.
    lease_id: str = field(default_factory=lambda: f"x{secrets.token_hex(4)}")

    # ---------------------------------------------------------------------------------------------- who is who

    @property
    def settings(self) -> Settings:
        """The settings that the whole rollout goes by: the bastion's. Every host has the same values of them."""
        return self.bastion.settings

    @property
    def targets(self) -> list[HostRun]:
        """The GPU hosts of this run that are in service, in the inventory's order."""
        return [each for each in self.hosts.values() if each is not self.bastion and not each.out_of_service]

    @property
    def gpus(self) -> list[str]:
        """The names of `targets`."""
        return [each.name for each in self.targets]

    @property
    def everyone(self) -> list[str]:
        """The bastion, where the run is for it, and the GPU hosts in service."""
        return [self.bastion.name] * self.bastion.in_limit + self.gpus

    @property
    def out_of_service(self) -> list[str]:
        return [each.name for each in self.hosts.values() if each.out_of_service]

    @property
    def whole_fleet(self) -> bool:
        """Whether the run is for every GPU host that is in service."""
        return set(self.gpus) == set(self.fleet)

    def failed(self) -> set[str]:
        """The GPU hosts that failed so far: those that pyinfra dropped, and those that regressed."""
        dropped = self.failed_in_pyinfra()
        return {each.name for each in self.targets if each.name in dropped or each.regressed}

    # ------------------------------------------------------------------------------------- the lock and the waves

    @property
    def release(self) -> Lock:
        """The lock of a run that is about one release."""
        if self.lock is None:
            raise LookupError("this command is not about one release")
        return self.lock

    @property
    def goldens(self) -> Goldens:
        return Goldens(self.settings)

    def plan_waves(self, sizes: Sequence[Any], own: bool = True) -> list[list[str]]:
        """The waves of this run by these sizes; with `own`, a host's own `wave` comes first."""
        fixed = {each.name: each.wave for each in self.targets if own and each.wave}
        return split(self.gpus, sizes, fixed)

    def hosts_up_to(self, number: int) -> list[str]:
        """The hosts of wave `number` (from 1) and of all waves before it."""
        return [name for wave in self.waves[:number] for name in wave]

    def hosts_after(self, number: int) -> list[str]:
        """The hosts of all waves behind wave `number` (from 1)."""
        return [name for wave in self.waves[number:] for name in wave]

    def moves_at_once(self) -> bool:
        """Whether one wave takes every GPU host that is not in the lock's embedding space yet.

        Never where --limit leaves hosts out, or where some may fail: those go on to answer in the old space.
        """
        if not self.whole_fleet or self.settings.max_failed_hosts:
            return False
        spaces = {each.name: each.space for each in self.targets}
        return moves_at_once(self.waves, spaces, embedding_space(self.release))

    def changes_something(self) -> bool:
        """Whether a deploy changes anything on any host, as far as the plans of the hosts tell."""
        return any(each.plan is None or not each.plan.has_nothing_to_do for each in self.targets)

    # ------------------------------------------------------------------------------------------------- evidence

    def count(self, names: Sequence[str], evidence: Evidence) -> int:
        """How many of these hosts hold this evidence."""
        return sum(self.hosts[name].has(evidence) for name in names)

    def without(self, names: Sequence[str], evidence: Evidence) -> list[str]:
        """Those of these hosts that lack this evidence."""
        return [name for name in names if not self.hosts[name].has(evidence)]
