"""What is about more than one host: who is who, gates between phases, work that the bastion does for others, sessions.

pyinfra orders operations level by level over all hosts, in no host order that can be relied on; a gate is an operation
that both sides of a boundary call: the edge in that order, and the place where the line stops.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any

from gevent.lock import BoundedSemaphore
from paramiko import SSHException
from pyinfra import host, inventory, logger, state
from pyinfra.api import BaseStateCallback, FunctionCommand, StringCommand, operation
from pyinfra.api.exceptions import ConnectError, PyinfraError
from pyinfra.connectors.util import CommandOutput

from tasks.lib import report

# All that pyinfra does on a host goes through one ssh transport, and sshd allows ten sessions on it; one is kept for
# SFTP, one for the display.
SESSIONS = 8
_sessions: dict[str, BoundedSemaphore] = {}
_connecting = BoundedSemaphore(1)


# ------------------------------------------------------------------------------------------------------- who is who


def bastion() -> Any:
    hosts = inventory.get_group("bastion")
    if len(hosts) != 1:
        raise PyinfraError(f"inventory: group `bastion` has {len(hosts)} hosts; expected exactly one")
    return hosts[0]


def targets() -> list[Any]:
    """The GPU hosts of this run, in the inventory's order."""
    found = [h for h in inventory.get_group("gpu_hosts") if state.is_host_in_limit(h)]
    if not found and not state.is_host_in_limit(bastion()):
        raise PyinfraError("no host of this inventory is meant; is there a typing error in --limit?")
    return found


def refuse_flags(argv: Sequence[str]) -> None:
    """pyinfra flags that would defeat the gates (and --no-wait exits 0 on failure)."""
    bad = {"--serial", "--no-wait"} & set(argv)
    if bad:
        raise PyinfraError(f"{' '.join(sorted(bad))} would defeat the gates between the phases. Next: leave it out")


# ------------------------------------------------------------------------------------------------------------ gates


@operation(is_idempotent=False)
def gate(before: Sequence[str], after: Sequence[str], key: str, max_failed: int = 0):
    """Hosts in `after` stop here unless all but `max_failed` hosts in `before` hold evidence `key` from this run."""
    if not before:
        raise PyinfraError(f"a gate waits for {key!r} of no host at all; is there a typing error in --limit?")
    if not state.is_executing or host.name not in after:
        return
    lacking = [name for name in before if not report.evidence(name, key) and name != host.name]
    own = host.name in before and not report.evidence(host.name, key)
    if not own and len(lacking) <= max_failed:
        host.noop(f"{len(before) - len(lacking)} of {len(before)} {key}")
        return

    def hold(state: Any, host: Any) -> bool:
        why = (
            f"held: {', '.join(lacking[:5])} not {key}"
            if lacking
            else report.RESULTS[host.name].get("why", f"not {key}")
        )
        report.record(host.name, **({"state": "held", "why": why} if not own else {}))
        host.log_styled(why, fg="yellow", log_func=logger.warning)
        return False

    yield FunctionCommand(hold, (), {})


# ------------------------------------------------------------------------------------- commands for and on other hosts


def run(target: Any, command: StringCommand, stdin: str | None, timeout: int) -> tuple[bool, CommandOutput]:
    """Run a command on any inventory host from any host's operation; never raises: a failure is the caller's alone."""
    with _sessions.setdefault(target.name, BoundedSemaphore(SESSIONS)):
        try:
            with _connecting:
                revive(target)
            return target.run_shell_command(
                command,
                print_output=state.print_output,
                print_input=state.print_input,
                _timeout=timeout,
                _stdin=stdin if stdin is not None else "",
                **elevation(target),
            )
        except (TimeoutError, OSError, SSHException, EOFError, ConnectError) as error:
            said = f"{target.name}: {type(error).__name__}: {error}"
            logger.error(said)
            return False, CommandOutput([])


def elevation(target: Any) -> dict[str, Any]:
    """The host's own way to root: pyinfra applies it to operations, but not to raw commands."""
    keys = ("_sudo", "_sudo_user", "_use_sudo_login", "_sudo_password", "_su_user", "_doas", "_dzdo")
    return {key: target.data.get(key) for key in keys if target.data.get(key) is not None}


# --------------------------------------------------------------------------------------------------------- sessions


def tune(target: Any) -> None:
    """Keep idle sessions alive, and no Nagle: paramiko's default costs 47 ms a command on a fast network."""
    client = getattr(target.connector, "client", None)
    transport = client.get_transport() if client else None
    if transport is not None and transport.is_active():
        transport.set_keepalive(30)
        if isinstance(transport.sock, socket.socket):
            transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def revive(target: Any) -> None:
    """Connect a host that --limit left out, and again one whose session died while others worked."""
    client = getattr(target.connector, "client", None)
    transport = client.get_transport() if client else None
    if target.connected and (transport is None or transport.is_active()):
        return
    if transport is not None:
        target.connector.get_file_transfer_connection.cache.clear()
        target.connected = False
    target.connect(reason="needed", raise_exceptions=True)
    tune(target)


class _Sessions(BaseStateCallback):
    def operation_host_start(self, state: Any, host: Any, op_hash: str) -> None:  # type: ignore[override]
        if op_hash in state.ops[host]:
            try:
                revive(host)
            except ConnectError as error:
                logger.error(f"{host.name}: cannot connect again: {error}")


def open_sessions() -> None:
    if not any(isinstance(handler, _Sessions) for handler in state.callback_handlers):
        state.add_callback_handler(_Sessions())
        for each in state.inventory.get_active_hosts():
            tune(each)
        # pyinfra logs "Skipped" for every host that an operation is not for: no news, and pages of it.
        logger.addFilter(lambda line: "Skipped" not in line.getMessage()[-20:])


def now() -> float:
    return time.time()
