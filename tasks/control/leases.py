"""Leases: while a rollout lives, a process on each of its hosts keeps every other rollout out."""

from __future__ import annotations

from typing import Any

import gevent
from paramiko import SSHException
from pyinfra import state
from pyinfra.api import StringCommand
from pyinfra.connectors.util import make_unix_command_for_host

from tasks.control.ssh import UNANSWERED, elevation
from tasks.shared.answers import last_json_object
from tasks.shared.errors import Refused

SPEAK = 5.0  # seconds; remote/host/lease.py ends after thirty without a word


class Leases:
    """The leases of this run: a process on each host that ends when it no longer hears us."""

    def __init__(self) -> None:
        self.channels: dict[str, Any] = {}

    def take(self, target: Any, command: StringCommand) -> str:
        """Start the holder on the host; return its one line of answer, or what the host says in its place.

        Raises Refused where the connection breaks.
        """
        words = make_unix_command_for_host(state, target, command, **elevation(target)).get_raw_value()
        lines: list[str] = []
        try:
            stdin, stdout, stderr = target.connector.client.exec_command(words)
            stdout.channel.settimeout(UNANSWERED)
            line = stdout.readline()
            while line and last_json_object([line], "ok") is None:  # a shell's start-up file may print something
                lines.append(line.strip())
                line = stdout.readline()
            answer = line or " ".join([*lines, stderr.read().decode("utf-8", "replace").strip()])[-300:]
        except (OSError, SSHException, EOFError, ValueError) as error:
            found = "; ".join([*lines, f"{type(error).__name__}: {error}"])[-300:]
            raise Refused(target.name, "gives no lease", found=found, next="ssh there, and see what it says") from None
        # paramiko closes a channel when nobody refers to its files any more.
        self.channels[target.name] = (stdin, stdout, stderr)
        gevent.spawn(self.speak, stdin)
        return answer

    def speak(self, stdin: Any) -> None:
        """Tell the holder that we live, until it hears us no longer."""
        while True:
            gevent.sleep(SPEAK)
            try:
                stdin.write("\n")
                stdin.flush()
            except (OSError, SSHException, EOFError):
                return

    def is_held(self, name: str) -> bool:
        """Whether our holder on the host still runs."""
        files = self.channels.get(name)
        return files is not None and not files[1].channel.exit_status_ready() and not files[1].channel.closed
