"""The opening that every command has in common: the command line, the settings of every host, the Run, its report.

pyinfra loads a command once per host. The first load creates the run. Later loads find it in pyinfra's list of callbacks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from enum import Enum
from fnmatch import fnmatch
from typing import Any

from gevent.lock import BoundedSemaphore
from pyinfra import inventory, logger, state
from pyinfra.api.exceptions import PyinfraError

from tasks.control import transports
from tasks.control.command_line import CommandLine
from tasks.control.host_run import HostRun, Role
from tasks.control.reporting.recorder import Recorder, check_folder, handle_signals, unreached
from tasks.control.reporting.table import DEPLOY, Column
from tasks.control.rules.states import State
from tasks.control.run import Run
from tasks.control.settings import Settings
from tasks.control.settings_layers import read_settings
from tasks.control.ssh import KeepConnected, tune
from tasks.shared.errors import Refused

# Settings that must be the same on every host, because waves, gates or the lock use them.
ONE_FOR_ALL = (
    *("lock", "models", "image", "family", "smoke_command", "dtype", "attention", "image_processor", "delivery"),
    *("push_parallel", "waves", "rollback_waves", "max_failed_hosts", "on_failure", "embedding_space_change", "sign"),
)
# Settings that one command reads, and no other.
FOR_ONE_COMMAND = {
    "update": "tasks/lock.py",
    "accept_goldens_from": "tasks/lock.py",
    "release": "tasks/rollback.py",
    "lease": "tasks/unlock.py",
    "sample": "tasks/verify.py",
    "contents": "tasks/bundle.py",
    "verify": "deploy.py",
}
# pyinfra's flags that would defeat the gates. --no-wait also exits 0 on failure.
DEFEAT_GATES = {"--serial", "--no-wait", "--fail-percent"}
SUDO_FLAGS = ("--sudo", "--su", "--dzdo", "--use-sudo", "--use-su", "--use-dzdo", "--same-sudo")
# pyinfra loads a command in a greenlet a host. The first one opens the run, the others wait.
OPENING = BoundedSemaphore(1)


class About(Enum):
    """Which hosts a command is about. The others may be silent."""

    ALL = "the bastion and the GPU hosts"
    GPUS = "the GPU hosts"
    BASTION = "the bastion"


def recorder_of(state: Any) -> Recorder | None:
    """The recorder of the run that is open, or None."""
    # pyinfra has no state yet where the inventory does not load.
    return next((each for each in getattr(state, "callback_handlers", []) if isinstance(each, Recorder)), None)


def open_run(
    set_up: Callable[[Run], None] = lambda run: None,
    about: About | Callable[[Settings], About] = About.ALL,
    columns: Sequence[Column] = DEPLOY,
) -> Run:
    """The Run of this command; the first call opens it.

    set_up: reads what the command needs (the lock, the waves) into the Run, before any host is touched. about: which hosts
    the command is about; it may be a function that gets the settings. columns: of the table in the end.
    """
    with OPENING:
        recorder = recorder_of(state) or _open(set_up, about, columns)
    return recorder.run


def _open(
    set_up: Callable[[Run], None], about: About | Callable[[Settings], About], columns: Sequence[Column]
) -> Recorder:
    unreached().command_began = True
    command_line = CommandLine(tuple(sys.argv[1:]))
    _refuse_several(command_line)
    _refuse_flags(command_line)
    _refuse_limits(command_line)
    _refuse_data(command_line)
    run = _make_run(command_line, about, _settings_of)
    _refuse_different_settings(run)
    as_pyinfra_error(set_up, run)
    check_folder()
    recorder = Recorder(run, state, columns)
    state.add_callback_handler(recorder)
    handle_signals(recorder)
    _open_sessions()
    if command_line.dry:
        # With -y pyinfra would not even ask operations whether they change anything.
        state.check_for_changes = True
    return recorder


def as_pyinfra_error(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run `work(…)`. If it raises Refused, raise it as a one-line PyinfraError: nothing was touched yet."""
    try:
        return work(*arguments)
    except Refused as no:
        raise PyinfraError(CommandLine(tuple(sys.argv[1:])).complete(str(no))) from None


# ------------------------------------------------------------------------------------------------------------ refusals


def _refuse_several(command_line: CommandLine) -> None:
    """One command is one run: a second one on the line would work in the first one's run, without its own checks."""
    if len(command_line.commands) > 1:
        found = ", ".join(command_line.commands)
        what = f"one command at a time; found {found}. Next: {command_line.commands[0]}, then the others"
        raise PyinfraError(command_line.complete(what))


def _refuse_flags(command_line: CommandLine) -> None:
    words = {word.partition("=")[0] for word in command_line.words}
    if bad := DEFEAT_GATES & words:
        raise PyinfraError(f"{' '.join(sorted(bad))} would defeat the gates between the phases. Next: leave it out")
    if bad := {word for word in words if word.startswith(SUDO_FLAGS)}:
        fix = 'Next: {"_sudo": True} on the host in the inventory'
        raise PyinfraError(f"{' '.join(sorted(bad))} does not reach what runs beside operations. {fix}")


def _refuse_limits(command_line: CommandLine) -> None:
    """Each --limit and --exclude must match a host or a group. pyinfra ignores one that is misspelt."""
    for option, wanted in command_line.limits():
        if wanted not in inventory.groups and not any(fnmatch(host.name, wanted) for host in inventory):
            raise PyinfraError(f"{option} {wanted} matches no host and no group of {command_line.inventory}")


def _refuse_data(command_line: CommandLine) -> None:
    """Refuse `--data` that this command does not read, and `--data` that may be set for one host only."""
    for key, value in inventory.get_override_data().items():
        if key in FOR_ONE_COMMAND and FOR_ONE_COMMAND[key] not in command_line.commands:
            raise PyinfraError(
                f"--data {key} is for {FOR_ONE_COMMAND[key]}, and has no effect here. Next: leave it out"
            )
        if key in FOR_ONE_COMMAND and value in ("", None):
            raise PyinfraError(f"--data {key} is empty; expected a value. Next: say it, or leave it out")
        if key in ("out_of_service", "wave"):
            raise PyinfraError(
                f"--data {key} would be every host's. Next: that host's line in {command_line.inventory}"
            )


def _refuse_different_settings(run: Run) -> None:
    baked = ["hf_home"] * (run.settings.delivery == "bake")  # it is part of the image then
    for key in [*ONE_FOR_ALL, *baked]:
        expected = getattr(run.settings, key)
        odd = [each for each in run.targets if getattr(each.settings, key) != expected]
        if odd:
            names = ", ".join(each.name for each in odd[:3])
            found = f"{getattr(odd[0].settings, key)!r} on {names}"
            what = f"{run.command_line.inventory}: {key} must be the same on all hosts"
            raise PyinfraError(f"{what}; expected {expected!r} as on the bastion, found {found}. Next: group_data/")


# ----------------------------------------------------------------------------------------------------------- the hosts


SettingsOf = Callable[[Any, CommandLine], Settings]


def _make_run(command_line: CommandLine, about: About | Callable[[Settings], About], settings_of: SettingsOf) -> Run:
    bastions = inventory.get_group("bastion", [])
    if len(bastions) != 1:
        raise PyinfraError(f"inventory: group `bastion` has {len(bastions)} hosts; expected exactly one")
    bastion = _host_run(bastions[0], Role.BASTION, command_line, settings_of)
    hosts = {bastion.name: bastion}
    fleet = inventory.get_group("gpu_hosts", [])
    for target in fleet:
        if state.is_host_in_limit(target):
            hosts[target.name] = _host_run(target, Role.GPU, command_line, settings_of)
    which = about if isinstance(about, About) else about(bastion.settings)
    _refuse_nobody(which, bastion, hosts)
    _ignore_silent_hosts(which, bastion, hosts)
    run = Run(
        command_line=command_line,
        bastion=bastion,
        hosts=hosts,
        fleet=[target.name for target in fleet if not target.data.get("out_of_service")],
        transport=transports.choose(bastion.settings),
        failed_in_pyinfra=lambda: {target.name for target in state.failed_hosts},
        is_executing=lambda: bool(state.is_executing),
    )
    with_bastion = [bastion.name] if which is not About.GPUS and bastion.in_limit else []
    run.reported = with_bastion if which is About.BASTION else [*with_bastion, *run.gpus, *run.out_of_service]
    return run


def _host_run(target: Any, role: Role, command_line: CommandLine, settings_of: SettingsOf) -> HostRun:
    me = HostRun(target.name, role, target, settings_of(target, command_line), command_line)
    me.in_limit = bool(state.is_host_in_limit(target))
    me.wave = target.data.get("wave")
    if role is Role.GPU and target.data.get("out_of_service"):
        me.out_of_service = str(target.data.get("out_of_service"))
        me.says(State.OUT_OF_SERVICE, f"out of service: {me.out_of_service}")
    return me


def _settings_of(target: Any, command_line: CommandLine) -> Settings:
    """The settings of one host, checked. The strongest layer comes first."""
    layers = [("--data", inventory.get_override_data())]
    layers.append((f"{command_line.inventory}: {target.name}", inventory.get_host_data(target.name)))
    for group in dict.fromkeys(reversed(target.groups)):
        layers.append((f"group_data/{group}.py", inventory.get_group_data(group)))
    layers.append(("group_data/all.py", inventory.get_data()))
    settings: Settings = as_pyinfra_error(read_settings, layers)
    return settings


def _refuse_nobody(about: About, bastion: HostRun, hosts: dict[str, HostRun]) -> None:
    gpus = [each for each in hosts.values() if each is not bastion]
    if about is About.BASTION and not bastion.in_limit:
        raise PyinfraError(f"this command is about {bastion.name}, which --limit leaves out")
    if about is About.GPUS and not gpus:
        raise PyinfraError("this command is about GPU hosts, and none is meant; is there a typing error in --limit?")
    if not gpus and not bastion.in_limit:
        raise PyinfraError("no host of this inventory is meant; is there a typing error in --limit?")


def _ignore_silent_hosts(about: About, bastion: HostRun, hosts: dict[str, HostRun]) -> None:
    """Do not count as failed: hosts that this command does not use, and hosts out of service."""
    if about is About.BASTION:
        state.failed_hosts -= set(inventory) - {bastion.target}
    elif about is About.GPUS:
        state.failed_hosts.discard(bastion.target)
    for each in hosts.values():
        if each.out_of_service:
            state.failed_hosts.discard(each.target)


def _open_sessions() -> None:
    state.add_callback_handler(KeepConnected())
    for target in state.inventory.get_active_hosts():
        tune(target)
    # pyinfra logs "Skipped" for every host that an operation is not for: that fills pages and tells nothing.
    logger.addFilter(lambda line: "Skipped" not in line.getMessage()[-20:])


def report_unreachable() -> Recorder:
    """The report of a run that reached no host: pyinfra ends before it loads the command, so settings are not read."""
    command_line = CommandLine(tuple(sys.argv[1:]))
    recorder = Recorder(_make_run(command_line, About.ALL, lambda *_: Settings.model_construct()), state, DEPLOY)
    recorder.write()
    return recorder
