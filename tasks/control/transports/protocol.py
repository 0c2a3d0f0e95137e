"""What every transport promises: carry blobs into a host's `incoming/`, and say how many bytes that took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tasks.control.host_run import HostRun

if TYPE_CHECKING:
    from tasks.control.run import Run


@dataclass(frozen=True)
class Sent:
    """What a transport says of one transfer, in bytes.

    moved: file data that crossed the wire. matched: file data that the host's own unfinished files held already.
    wire: all bytes that were sent.
    """

    moved: int
    matched: int
    wire: int


class Transport(Protocol):
    """One way to carry blobs into a host's `incoming/`, one object a run. Its set-up, progress and settings are its own."""

    def prepare(self, run: Run, me: HostRun) -> None:
        """Make the host ready to receive, and nobody else able to write there. Raises Refused."""

    def finish_earlier(self, run: Run, me: HostRun) -> None:
        """Wait until no earlier transfer to this host runs any more. Raises Refused."""

    def send(self, run: Run, me: HostRun, blobs: Mapping[str, int]) -> Sent:
        """Carry these blobs ({sha256: size}) from the bastion's store into the host's `incoming/`. Raises Refused.

        When it returns, nothing of it may still write there: `store admit` waits ten seconds for the processes of
        `push_user` to end, and refuses if one is left. A program under another user would not even be waited for.
        """
