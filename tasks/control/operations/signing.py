"""The operator's signatures, on their way to the machines that check them."""

from __future__ import annotations

from tasks.control.git.signatures import as_sent
from tasks.control.host_run import HostRun
from tasks.control.run import Run
from tasks.control.tool import call, expect
from tasks.shared.lock import Lock


def bring_signatures(run: Run, me: HostRun, lock: Lock) -> None:
    """Lock and goldens with their signatures, before any byte moves. Raises Refused where the host asks for better ones."""
    document = as_sent(me.settings, lock)
    expect(call(run, me, "signed", "keep", document=document, release=lock.id, deadline=300))


def asked_for(run: Run) -> bool:
    """Whether the operator, or any machine of this run, asks for signatures."""
    machines = [run.bastion, *run.targets]
    return any(each.settings.sign or (each.facts and each.facts.signers) for each in machines)
