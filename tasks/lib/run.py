"""The opening that every command has in common: settings, sessions, the look at each host, the report."""

from __future__ import annotations

import json
import sys
from typing import Any

from pyinfra import host, inventory, state
from pyinfra.api.exceptions import PyinfraError

from tasks.lib import fitness, fleet, report
from tasks.lib.facts import Host
from tasks.lib.release import Lock, Refused
from tasks.lib.settings import Settings, check


def inventory_name() -> str:
    """The inventory as it was named on the command line, for the commands in messages."""
    return next((word for word in sys.argv[1:] if word.endswith(".py")), "INVENTORY")


def settings_of(target: Any) -> Settings:
    """The settings of one host, checked; the run ends here, before any host is touched, when one is wrong."""
    layers = [("--data", inventory.get_override_data())]
    layers.append((f"{inventory_name()}: {target.name}", inventory.get_host_data(target.name)))
    layers += [(f"group_data/{group}.py", inventory.get_group_data(group)) for group in reversed(target.groups)]
    layers.append(("group_data/all.py", inventory.get_data()))
    try:
        return check(layers)
    except Refused as no:
        raise PyinfraError(str(no)) from None


def refuse(work: Any, *arguments: Any) -> Any:
    """`work(…)`, its refusal turned into pyinfra's one-line error: for what is wrong before any host is touched."""
    try:
        return work(*arguments)
    except Refused as no:
        raise PyinfraError(str(no)) from None


def open_run() -> Settings:
    """Checks the settings of *every* host of the run, then opens sessions; -> this host's settings."""
    fleet.refuse_flags(sys.argv)
    bastion = fleet.bastion()
    for each in [bastion, *fleet.targets()]:
        if "settings" not in report.RESULTS.get(each.name, {}):
            report.record(each.name, settings=settings_of(each))
    fleet.open_sessions()
    if dry():
        # With -y pyinfra would not even ask operations whether they change anything.
        state.check_for_changes = True
    return report.RESULTS[host.name]["settings"]


def dry() -> bool:
    return "--dry" in sys.argv


def look(lock: Lock | None) -> list[str]:
    """Look at this host, once; -> what it lacks for the lock."""
    settings: Settings = report.RESULTS[host.name]["settings"]
    role = "bastion" if host.name == fleet.bastion().name else "gpu"
    ask: dict[str, Any] = {"store": settings.model_store, "push_user": settings.push_user}
    if role == "gpu":
        ask |= {
            "stack": settings.stack,
            "service": settings.service,
            "project": settings.project,
            "egress": settings.egress,
        }
    seen = host.get_fact(Host, ask=json.dumps(ask, sort_keys=True))
    report.record(host.name, seen=seen)
    if host.name != fleet.bastion().name:
        look_at_bastion()
    return fitness.unfit(seen, settings, lock, role, fleet.now())


def look_at_bastion() -> None:
    """`--limit gpu-07` leaves the bastion out of the run; what it holds is trusted, and asked when it must push."""
    bastion = fleet.bastion()
    if not state.is_host_in_limit(bastion):
        report.RESULTS[bastion.name].setdefault("seen", {"store": {"tools": []}})


def roles() -> dict[str, str]:
    """{host: role} of the hosts of this run, the bastion first."""
    bastion = fleet.bastion()
    here = {bastion.name: "bastion"} if state.is_host_in_limit(bastion) else {}
    return here | {target.name: "gpu" for target in fleet.targets() if target in inventory.get_group("gpu_hosts")}
