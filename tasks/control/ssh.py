"""How a host is reached: commands, small files and new connections over pyinfra's ssh, from any host's operation.

pyinfra sends everything for a host through one ssh connection. sshd allows ten sessions on it, so ours are counted.
"""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gevent.lock import BoundedSemaphore
from paramiko import ChannelException, SSHException
from pyinfra import logger, state
from pyinfra.api import BaseStateCallback, StringCommand
from pyinfra.api.exceptions import ConnectError
from pyinfra.connectors.util import CommandOutput, OutputLine

from tasks.control.settings_layers import ELEVATION
from tasks.shared.errors import Refused

# sshd's usual limit is ten: one is kept for SFTP, one for the display.
PER_CONNECTION = 8
# Seconds that a host's network may leave unanswered what we sent. The kernel's own limit is a quarter of an hour.
UNANSWERED = 60


class Sessions:
    """How many commands run on each host at once, and who connects now."""

    def __init__(self) -> None:
        self.hosts: dict[str, BoundedSemaphore] = {}
        self.connecting = BoundedSemaphore(1)

    def of(self, name: str) -> BoundedSemaphore:
        return self.hosts.setdefault(name, BoundedSemaphore(PER_CONNECTION))

    def revive(self, target: Any) -> None:
        """Connect the host where it is not connected; one host at a time."""
        with self.connecting:
            revive(target)

    def run(self, target: Any, command: StringCommand, stdin: str | None, timeout: int) -> tuple[bool, CommandOutput]:
        """Run a command on any host of the inventory; return whether it succeeded, and its output. It never raises.

        timeout: seconds. What goes wrong here belongs to the host whose operation asked, so it is told as output.
        """
        with self.of(target.name):
            try:
                self.revive(target)
                done: tuple[bool, CommandOutput] = target.run_shell_command(
                    command,
                    print_output=state.print_output,
                    print_input=state.print_input,
                    _timeout=timeout,
                    _stdin=stdin if stdin is not None else "",
                    **elevation(target),
                )
                return done
            except (TimeoutError, OSError, SSHException, EOFError, ConnectError) as error:
                said = f"{target.name}: {type(error).__name__}: {error}"
                if isinstance(error, ChannelException):  # logged in, and refused a session
                    expected = f"{PER_CONNECTION + 2} sessions on one connection"
                    said += f"; expected {expected}. Next: MaxSessions in its sshd_config"
                logger.error(said)
                return False, CommandOutput([OutputLine("stderr", said)])

    @contextmanager
    def fresh(self, target: Any) -> Iterator[None]:
        """Work on `target` over a connection that is made now. Raises Refused where the host takes none.

        An old connection proves little: the switch may have locked everybody else out.
        """
        old, new = target.connector, type(target.connector)(state, target)
        try:
            with self.connecting:
                new.connect()
        except ConnectError as error:
            fix = "it puts the old release back by itself; look at the host's network and sshd"
            raise Refused(target.name, "takes no new connection", found=str(error), next=fix) from None
        target.connector = new
        tune(target)
        try:
            yield
        finally:
            target.connector = old
            if new.client is not None:
                new.client.close()


def send_file(target: Any, data: bytes, path: str) -> bool:
    """Write `data` to a file on the host; return whether it worked. It never raises: a full disk is False, too."""
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
    """The host's own way to root. pyinfra applies it to operations, but not to raw commands."""
    return {key: target.data.get(key) for key in ELEVATION if target.data.get(key) is not None}


def tune(target: Any) -> None:
    """Keep idle connections alive, notice dead ones, and send small packets at once.

    paramiko leaves Nagle's algorithm on, which costs 47 ms a command on a fast network.
    """
    client = getattr(target.connector, "client", None)
    transport = client.get_transport() if client else None
    if transport is None or not transport.is_active():
        return
    transport.set_keepalive(30)
    # paramiko waits an hour for a session that a stuck sshd never gives: the host's kernel answers for it.
    transport.channel_timeout = UNANSWERED
    if isinstance(transport.sock, socket.socket):
        transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNANSWERED * 1000)


def revive(target: Any) -> None:
    """Connect a host that --limit left out, or one whose connection died while others worked."""
    client = getattr(target.connector, "client", None)
    transport = client.get_transport() if client else None
    if target.connected and (transport is None or transport.is_active()):
        return
    if transport is not None:
        target.connector.get_file_transfer_connection.cache.clear()
        target.connected = False
    target.connect(reason="needed", raise_exceptions=True)
    tune(target)


class KeepConnected(BaseStateCallback):
    """Connects a host again before each of its operations, where its connection died."""

    def operation_host_start(self, state: Any, host: Any, op_hash: str) -> None:  # type: ignore[override]
        if op_hash in state.ops[host]:
            try:
                revive(host)
            except ConnectError as error:
                logger.error(f"{host.name}: cannot connect again: {error}")
