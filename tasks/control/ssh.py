"""What is about more than one host: who is who, gates between phases, work that the bastion does for others, sessions.

pyinfra orders operations level by level over all hosts, in no host order that can be relied on; a gate is an operation
that both sides of a boundary call: the edge in that order, and the place where the line stops.
"""

from __future__ import annotations

import io
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

import gevent
from gevent.lock import BoundedSemaphore
from paramiko import ChannelException, SSHException
from pyinfra import host, inventory, logger, state
from pyinfra.api import BaseStateCallback, FunctionCommand, StringCommand, operation
from pyinfra.api.exceptions import ConnectError, PyinfraError
from pyinfra.connectors.util import CommandOutput, OutputLine, make_unix_command_for_host

from tasks.control.reporting import recorder as report
from tasks.control.settings import ELEVATION
from tasks.shared.answers import last_json_object
from tasks.shared.errors import Refused

# All that pyinfra does on a host goes through one ssh transport, and sshd allows ten sessions on it; one is kept for
# SFTP, one for the display.
SESSIONS = 8
# Seconds that a host's network may leave what we sent unanswered; the kernel's own limit is a quarter of an hour.
UNANSWERED = 60
_sessions: dict[str, BoundedSemaphore] = {}
_connecting = BoundedSemaphore(1)


# ------------------------------------------------------------------------------------------------------- who is who


def bastion() -> Any:
    hosts = inventory.get_group("bastion")
    if len(hosts) != 1:
        raise PyinfraError(f"inventory: group `bastion` has {len(hosts)} hosts; expected exactly one")
    return hosts[0]


def out_of_service() -> dict[str, str]:
    """{host: reason} of the GPU hosts that are left out of everything until their `out_of_service` is taken away."""
    every = [h for h in inventory.get_group("gpu_hosts", []) if state.is_host_in_limit(h)]
    return {h.name: str(h.data.get("out_of_service")) for h in every if h.data.get("out_of_service")}


def targets() -> list[Any]:
    """The GPU hosts of this run, in the inventory's order."""
    away = out_of_service()
    found = [h for h in inventory.get_group("gpu_hosts", []) if state.is_host_in_limit(h) and h.name not in away]
    if not found and not away and not state.is_host_in_limit(bastion()):
        raise PyinfraError("no host of this inventory is meant; is there a typing error in --limit?")
    return found


def failed() -> set[str]:
    """The GPU hosts that failed so far in this run: those that pyinfra dropped, and those that fell."""
    return {each.name for each in targets() if each in state.failed_hosts or report.RESULTS[each.name].get("fell")}


def refuse_flags(argv: Sequence[str]) -> None:
    """pyinfra flags that would defeat the gates (and --no-wait exits 0 on failure), or be half obeyed."""
    words = {word.partition("=")[0] for word in argv}
    if bad := {"--serial", "--no-wait", "--fail-percent"} & words:
        raise PyinfraError(f"{' '.join(sorted(bad))} would defeat the gates between the phases. Next: leave it out")
    if bad := {word for word in words if re.match(r"--(use-|same-)?(sudo|su|dzdo)\b", word)}:
        mend = 'Next: {"_sudo": True} on the host in the inventory'
        raise PyinfraError(f"{' '.join(sorted(bad))} does not reach what runs beside operations. {mend}")


def refuse_limits(argv: Sequence[str]) -> None:
    """Each --limit and --exclude must mean somebody: pyinfra goes on without the one that is misspelt."""
    for here, after in zip(argv, [*argv[1:], ""], strict=True):
        option, equals, value = here.partition("=")
        wanted = (value if equals else after) if option in ("--limit", "--exclude") else None
        named = wanted is None or wanted in inventory.groups or any(fnmatch(h.name, wanted) for h in inventory)
        if not named:
            raise PyinfraError(f"{option} {wanted} matches no host and no group of {report.inventory()}")


# ------------------------------------------------------------------------------------------------------------ gates


@operation(is_idempotent=False)
def gate(before: Sequence[str], after: Sequence[str], key: str, max_failed: int = 0):
    """Hosts in `after` stop here unless all but `max_failed` hosts in `before` hold evidence `key` from this run, and one does.

    Failures count over the whole fleet: a host of a later wave that failed earlier is one, too.
    """
    if not before:
        raise PyinfraError(f"a gate waits for {key!r} of no host at all; is there a typing error in --limit?")
    if not state.is_executing or host.name not in after:
        return
    lacking = [name for name in before if not report.evidence(name, key) and name != host.name]
    lacking += sorted(failed() - set(lacking) - {host.name})
    own = host.name in before and not report.evidence(host.name, key)
    good = sum(report.evidence(name, key) for name in before)
    # A canary that failed has proven nothing, however many may fail.
    if not own and good and len(lacking) <= max_failed:
        host.noop(f"{good} of {len(before)} {key}")
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
            if isinstance(error, ChannelException):  # logged in, and refused a session
                said += f"; expected {SESSIONS + 2} sessions on one connection. Next: MaxSessions in its sshd_config"
            logger.error(said)
            return False, CommandOutput([OutputLine("stderr", said)])


def send(target: Any, data: bytes, path: str) -> bool:
    """Write `data` to a file on the host; never raises: no such directory, a full disk, a broken connection are False."""
    try:
        connect = getattr(target.connector, "get_file_transfer_connection", None)
        channel = getattr(connect and connect(), "get_channel", None)
        if channel:
            channel().settimeout(UNANSWERED)
        return bool(target.connector.put_file(io.BytesIO(data), path, **elevation(target)))
    except (OSError, SSHException, EOFError, ConnectError) as error:
        logger.error(f"{target.name}: {path}: {type(error).__name__}: {error}")
        return False


def elevation(target: Any) -> dict[str, Any]:
    """The host's own way to root: pyinfra applies it to operations, but not to raw commands."""
    return {key: target.data.get(key) for key in ELEVATION if target.data.get(key) is not None}


# ----------------------------------------------------------------------------------------------------------- leases


class Leases:
    """What this run holds on the hosts, each by a process there that ends when it no longer hears us."""

    SPEAK = 5.0  # seconds; remote/lease.py ends after thirty without a word

    def __init__(self) -> None:
        self.channels: dict[str, Any] = {}

    def take(self, target: Any, command: StringCommand) -> str:
        """Start the holder; -> its one line of answer, or what the host says in place of that."""
        with _connecting:
            revive(target)
        words = make_unix_command_for_host(state, target, command, **elevation(target)).get_raw_value()
        lines: list[str] = []
        try:
            stdin, stdout, stderr = target.connector.client.exec_command(words)
            stdout.channel.settimeout(UNANSWERED)
            while (line := stdout.readline()) and last_json_object(
                [line], "ok"
            ) is None:  # a shell's start-up file may talk
                lines.append(line.strip())
            answer = line or " ".join([*lines, stderr.read().decode("utf-8", "replace").strip()])[-300:]
        except (OSError, SSHException, EOFError, ValueError) as error:
            found = "; ".join([*lines, f"{type(error).__name__}: {error}"])[-300:]
            raise Refused(target.name, "gives no lease", found=found, next="ssh there, and see what it says") from None
        # paramiko closes a channel whose files are forgotten
        self.channels[target.name] = (stdin, stdout, stderr)
        gevent.spawn(self.speak, stdin)
        return answer

    def speak(self, stdin: Any) -> None:
        while True:
            gevent.sleep(self.SPEAK)
            try:
                stdin.write("\n")
                stdin.flush()
            except (OSError, SSHException, EOFError):
                return

    def held(self, target: Any) -> bool:
        """Whether our holder on the host still runs."""
        files = self.channels.get(target.name)
        return files is not None and not files[1].channel.exit_status_ready() and not files[1].channel.closed


leases = Leases()


# --------------------------------------------------------------------------------------------------------- sessions


def tune(target: Any) -> None:
    """Keep idle sessions alive, notice dead ones, and no Nagle: paramiko's default costs 47 ms a command on a fast network."""
    client = getattr(target.connector, "client", None)
    transport = client.get_transport() if client else None
    if transport is not None and transport.is_active():
        transport.set_keepalive(30)
        # paramiko waits an hour for a session that a stuck sshd never gives: its kernel answers for it.
        transport.channel_timeout = UNANSWERED
        if isinstance(transport.sock, socket.socket):
            transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
                transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNANSWERED * 1000)


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


@contextmanager
def fresh(target: Any) -> Iterator[None]:
    """Work on `target` over a connection made now: what still works over an old one may have locked everybody else out."""
    old, new = target.connector, type(target.connector)(state, target)
    try:
        with _connecting:
            new.connect()
    except ConnectError as error:
        back = "it puts the old release back by itself; look at the host's network and sshd"
        raise Refused(target.name, "takes no new connection", found=str(error), next=back) from None
    target.connector = new
    tune(target)
    try:
        yield
    finally:
        target.connector = old
        if new.client is not None:
            new.client.close()


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
