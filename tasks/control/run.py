"""The opening that every command has in common: settings, sessions, the look at each host, the report."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from pyinfra import host, inventory, state
from pyinfra.api.exceptions import PyinfraError

from tasks.control import compose
from tasks.control import drift as standing
from tasks.control import lockfile as locks
from tasks.control import preflight as fitness
from tasks.control import ssh as fleet
from tasks.control.operations.inspecting import Host
from tasks.control.reporting import recorder as report
from tasks.control.settings import Settings, check
from tasks.control.tool import tool_path
from tasks.control.waves import waves
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock
from tasks.shared.signatures import SIGNERS
from tasks.shared.spaces import embedding_space

# Settings that waves, gates and the lock go by: a rollout has one of each.
ROLLOUT = (
    *("lock", "models", "image", "family", "smoke_command", "dtype", "attention", "image_processor", "delivery"),
    *("push_parallel", "waves", "rollback_waves", "max_failed_hosts", "on_failure", "embedding_space_change", "sign"),
)


# What says something to one command only, and goes unheard by the others.
COMMANDS = {
    "update": "tasks/lock.py",
    "accept_goldens_from": "tasks/lock.py",
    "release": "tasks/rollback.py",
    "lease": "tasks/unlock.py",
    "sample": "tasks/verify.py",
    "have": "tasks/bundle.py",
    "verify": "deploy.py",
}


def refuse_data() -> None:
    """`--data` that this command would not hear, or that is meant for one host and would be every host's."""
    for key, value in inventory.get_override_data().items():
        if key in COMMANDS and COMMANDS[key] not in report.commands():
            raise PyinfraError(f"--data {key} is for {COMMANDS[key]}, and says nothing here. Next: leave it out")
        if key in COMMANDS and value in ("", None):
            raise PyinfraError(f"--data {key} is empty; expected a value. Next: say it, or leave it out")
        if key in ("out_of_service", "wave"):
            raise PyinfraError(f"--data {key} would be every host's. Next: that host's line in {report.inventory()}")


def settings_of(target: Any) -> Settings:
    """The settings of one host, checked; the run ends here, before any host is touched, when one is wrong."""
    layers = [("--data", inventory.get_override_data())]
    layers.append((f"{report.inventory()}: {target.name}", inventory.get_host_data(target.name)))
    layers += [
        (f"group_data/{group}.py", inventory.get_group_data(group)) for group in dict.fromkeys(reversed(target.groups))
    ]
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
        raise PyinfraError(report.pasteable(str(no))) from None


def open_run(bastion: bool = True) -> Settings:
    """Checks the settings of *every* host of the run, then opens sessions; -> this host's settings.

    `bastion` False: the run does not need it, so it may be off.
    """
    fleet.refuse_flags(sys.argv)
    fleet.refuse_limits(sys.argv)
    refuse_data()
    if not bastion:
        state.failed_hosts.discard(fleet.bastion())
        if not gpus():
            raise PyinfraError(
                "this command is about GPU hosts, and none is meant; is there a typing error in --limit?"
            )
    for each in [fleet.bastion(), *fleet.targets(), host]:
        if "settings" not in report.RESULTS.get(each.name, {}):
            report.record(each.name, settings=settings_of(each))
    one_word()
    leave_out()
    fleet.open_sessions()
    if report.dry():
        # With -y pyinfra would not even ask operations whether they change anything.
        state.check_for_changes = True
    return report.RESULTS[host.name]["settings"]


def leave_out() -> None:
    """What is out of service is shown, and its silence is no failure of this run."""
    for name, why in fleet.out_of_service().items():
        report.record(name, state="out of service", why=f"out of service: {why}")
        state.failed_hosts.discard(inventory.get_host(name))


def one_word() -> None:
    """What a rollout as a whole goes by must be the same on every host of it."""
    every = {each.name: report.RESULTS[each.name]["settings"] for each in [fleet.bastion(), *fleet.targets()]}
    for key in ROLLOUT:
        values = {name: getattr(settings, key) for name, settings in every.items()}
        odd = [name for name, value in values.items() if value != values[fleet.bastion().name]]
        if odd:
            found = f"{values[odd[0]]!r} on {', '.join(odd[:3])}"
            raise PyinfraError(
                f"{report.inventory()}: {key} is one for the whole rollout; "
                f"expected {values[fleet.bastion().name]!r} as on the bastion, found {found}. Next: group_data/"
            )


def glance(target: Any) -> dict[str, Any] | None:
    """What remote/look.py sees on a host; pyinfra asks each host once a run."""
    settings: Settings = report.RESULTS[target.name]["settings"]
    role = "bastion" if target.name == fleet.bastion().name else "gpu"
    ask: dict[str, Any] = {"store": settings.model_store, "push_user": settings.push_user, "signers": SIGNERS}
    if role == "bastion" and settings.bundle:
        ask["bundle"] = settings.bundle
    if role == "gpu":
        ask |= {
            "stack": settings.stack,
            "service": settings.service,
            "project": settings.project,
            "egress": settings.egress,
        }
    return target.get_fact(Host, ask=json.dumps(ask, sort_keys=True))


def look(lock: Lock | None, plan: Sequence[Sequence[str]] = ()) -> list[str]:
    """Look at this host; -> what it lacks for the lock, and what a rollout in these waves may not do to it."""
    settings: Settings = report.RESULTS[host.name]["settings"]
    role, seen = "bastion" if host.name == fleet.bastion().name else "gpu", glance(host)
    lacks = fitness.unfit(seen, settings, lock, role, fleet.now())
    seen = seen if seen and "store" in seen else None  # without Python, a look sees nothing but that
    report.record(host.name, seen=seen, **standing.told(seen, settings))
    if role == "gpu":
        look_at_bastion()
    if seen and lock and seen["signers"]:
        lacks += fitness.unsigned(refuse(locks.unsigned, settings, lock))
    if seen and lock and role == "gpu":
        report.record(host.name, to_space=embedding_space(lock), contents=lock.summary())
        lacks += standing.space_problem(seen, lock, settings, lambda: together(plan, lock))
    return lacks


def look_at_bastion() -> None:
    """`--limit gpu-07` leaves the bastion out of the run; what it holds is trusted, and asked when it must push."""
    bastion = fleet.bastion()
    if not state.is_host_in_limit(bastion):
        report.RESULTS[bastion.name].setdefault("seen", {"store": {"tools": []}})


def bastion_alone() -> str:
    """The bastion's name, for a command that is about it alone: no other host's silence is its failure."""
    bastion = fleet.bastion()
    if not state.is_host_in_limit(bastion):
        raise PyinfraError(f"this command is about {bastion.name}, which --limit leaves out")
    state.failed_hosts -= set(inventory) - {bastion}
    return str(bastion.name)


def roles() -> dict[str, str]:
    """{host: role} of the hosts of this run, the bastion first."""
    bastion = fleet.bastion()
    here = {bastion.name: "bastion"} if state.is_host_in_limit(bastion) else {}
    return here | gpus()


def gpus() -> dict[str, str]:
    """{host: role} of the GPU hosts of this run, those out of service among them."""
    away = fleet.out_of_service()
    return {each.name: "gpu" for each in fleet.targets()} | dict.fromkeys(away, "gpu")


def in_service() -> list[str]:
    """The GPU hosts that this run is for."""
    return [each.name for each in fleet.targets()]


def changes(lock: Lock, goldens: Any) -> bool:
    """Whether a deploy of `lock` would change anything on any host, as far as the looks at them tell."""
    digest = goldens.digest(lock)
    for each in fleet.targets():
        known = report.RESULTS[each.name]
        settings, seen = known["settings"], known.get("seen")
        text, signatures = compose.override(lock, settings, tool_path(settings), True), locks.signatures(settings, True)
        if (
            not seen
            or seen["store"]["lease"] is not None
            or digest is None
            or not standing.as_asked(seen, settings, lock, text, signatures, digest, fleet.now())
        ):
            return True
    return False


def plan(sizes: Any, own: bool = True) -> list[list[str]]:
    """The waves of this run, from the settings, and with `own` from each host's `wave`."""
    hosts = fleet.targets()
    fixed = {each.name: each.data.get("wave") for each in hosts if own and each.data.get("wave")}
    return waves([each.name for each in hosts], sizes, fixed)


def whole_fleet() -> bool:
    """Whether this run is for every GPU host that there is, but those out of service."""
    every = {each.name for each in inventory.get_group("gpu_hosts", [])}
    return set(in_service()) == every - set(fleet.out_of_service())


def together(plan: Sequence[Sequence[str]], lock: Lock) -> bool:
    """Whether one wave takes every GPU host there is, or all that are not in the lock's embedding space yet."""
    here = {each.name: each for each in fleet.targets()}
    if not whole_fleet() or report.RESULTS[host.name]["settings"].max_failed_hosts:
        return False  # what --limit leaves out, or what may fail, answers the same index
    spaces = dict.fromkeys(here, "unknown")
    if len(plan) > 1:
        glances = {name: glance(each) for name, each in here.items() if each in state.active_hosts}
        spaces |= {name: standing.space_of(seen) for name, seen in glances.items() if seen and "store" in seen}
    return standing.together(plan, spaces, embedding_space(lock))
