"""Gates: the fence between two phases, where the line stops.

pyinfra orders operations level by level over all hosts. A gate is an operation that both sides of a boundary call. So it is
an edge in that order, and the place where hosts behind it are held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, operation
from pyinfra.api.exceptions import PyinfraError

from tasks.control.command_line import shown_hosts
from tasks.control.host_run import Evidence, HostRun
from tasks.control.rules.states import State
from tasks.control.run import Run


@operation(is_idempotent=False)
def gate(run: Run, before: Sequence[str], after: Sequence[str], evidence: Evidence, max_failed: int = 0) -> Any:
    """Hold the hosts in `after` unless enough hosts in `before` hold `evidence` from this run.

    Enough is: all but `max_failed`, and at least one. Failures count over the whole fleet.
    """
    if not before:
        raise PyinfraError(
            f"a gate waits for {evidence.value!r} of no host at all; is there a typing error in --limit?"
        )
    if not run.is_executing() or host.name not in after:
        return
    me = run.hosts[host.name]
    missing = who_is_missing(run, me, before, evidence)
    passed = run.count(before, evidence)
    own = host.name in before and not me.has(evidence)
    # A canary that failed has proven nothing, however many hosts may fail.
    if not own and passed and len(missing) <= max_failed:
        host.noop(f"{passed} of {len(before)} {evidence.value}")
        return
    yield FunctionCommand(hold, (me, missing, evidence, own), {})


def who_is_missing(run: Run, me: HostRun, before: Sequence[str], evidence: Evidence) -> list[str]:
    """The other hosts that keep this one behind the gate: those without the evidence, and all that failed so far."""
    missing = [name for name in run.without(before, evidence) if name != me.name]
    return missing + sorted(run.failed() - set(missing) - {me.name})


def hold(state: Any, host: Any, me: HostRun, missing: Sequence[str], evidence: Evidence, own: bool) -> bool:
    """Stop this host here. `own`: it lacks the evidence itself, and keeps its own reason.

    pyinfra passes `state` and `host` to a function that has parameters of these very names.
    """
    why = me.why or f"not {evidence.value}"
    if missing:
        why = f"held: {shown_hosts(missing)} not {evidence.value}"
    if not own:
        me.says(State.HELD, why)
    host.log_styled(why, fg="yellow", log_func=logger.warning)
    return False
