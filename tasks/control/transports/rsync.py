"""rsync over ssh: from the bastion to one host at a time, as a user that can write below `incoming/` and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gevent.lock import BoundedSemaphore

from tasks.control.host_run import HostRun
from tasks.control.reporting.progress import Pushes
from tasks.control.tool import call, ensure_tool, expect
from tasks.control.transports.protocol import Sent

if TYPE_CHECKING:
    from tasks.control.run import Run


class Rsync:
    """At most `parallel` hosts receive at once. Its program on the bastion is remote/bastion/push.py."""

    def __init__(self, parallel: int) -> None:
        self.slots = BoundedSemaphore(parallel)
        self.display: Pushes | None = None

    def prepare(self, run: Run, me: HostRun) -> None:
        """The push user on the host, with the bastion's one key, which can only write below incoming/."""
        bastion = run.bastion
        ensure_tool(run, bastion)
        key = expect(call(run, bastion, "push", "key"))["key"]
        source = me.settings.push_from
        if not source:
            source = expect(call(run, bastion, "push", "source", to=address(me)))["source"]
        expect(call(run, me, "setup", user=me.settings.push_user, key=key, from_=source))

    def finish_earlier(self, run: Run, me: HostRun) -> None:
        expect(call(run, run.bastion, "push", "idle", host=me.name, deadline=120))

    def send(self, run: Run, me: HostRun, blobs: Mapping[str, int]) -> Sent:
        if not blobs:
            return Sent(0, 0, 0)
        settings, port = me.settings, me.target.data.get("ssh_port") or 22
        name = me.target.data.get("ssh_hostname") or me.name
        known = Path(me.target.data.get("ssh_known_hosts_file") or "~/.ssh/known_hosts").expanduser()
        document = {"blobs": dict(blobs), "known_hosts": known.read_text(encoding="utf-8")}
        self.display = self.display or Pushes(lambda: running(run))
        with self.slots, self.display:
            answer = call(
                run,
                run.bastion,
                "push",
                "send",
                document=document,
                deadline=settings.push_deadline + 30,
                within=settings.push_deadline,
                host=me.name,
                to=f"{settings.push_user}@{address(me)}",
                port=settings.push_port or port,
                # The host key is known by the name that the inventory has, whatever address the bastion uses.
                alias=name if port == 22 else f"[{name}]:{port}",
                limit=settings.bandwidth_limit,
            )
        sent = expect(answer)
        return Sent(sent["moved"], sent["matched"], sent["sent"])


def address(me: HostRun) -> str:
    """The host's address as the bastion sees it."""
    return str(me.settings.push_address or me.target.data.get("ssh_hostname") or me.name)


def running(run: Run) -> dict[str, Any]:
    """{host: {"done", "total", "seconds"}} of the pushes that run now, for the display."""
    return dict(call(run, run.bastion, "push", "status", deadline=30).get("running", {}))
