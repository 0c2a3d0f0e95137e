"""Deletes what nothing uses."""

from __future__ import annotations

from typing import Any

from pyinfra import host, logger
from pyinfra.api import operation

from tasks.control.host_run import HostRun
from tasks.control.rules.states import State
from tasks.control.rules.units import size
from tasks.control.run import Run
from tasks.control.tool import call, ensure_tool, expect, fail, guarded
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock


@operation(is_idempotent=True)
def prune(run: Run) -> Any:
    """Delete old releases, blobs and images that nothing uses. With --dry, say what would go."""
    me = run.hosts[host.name]
    if run.is_executing():
        yield guarded(me, lambda: prune_host(run, me, run.kept_lock, "do"))
        return
    try:
        prune_host(run, me, run.kept_lock, "plan")
    except Refused as no:
        fail(me, str(no))


def prune_host(run: Run, me: HostRun, lock: Lock | None, verb: str) -> bool:
    """verb: `do`, or `plan`, which deletes nothing."""
    if me.facts is None:
        raise Refused(me.name, "could not be inspected", next="run again with -v")
    if not me.facts.store_filesystem.exists:
        me.says(State.EMPTY)
        return True
    ensure_tool(run, me)
    keep = {"keep": [lock.id] if lock else [], "blobs": sorted(lock.blobs()) if lock else []}
    found = expect(call(run, me, "prune", verb, keep=me.settings.keep_releases, document=keep, deadline=3600))
    gone = [f"release {name[:12]}: {size(freed)}" for name, freed in sorted(found["releases"].items())]
    for name, freed in sorted(found["images"].items()):
        logger.info(f"    [{me.name}] image {name}: up to {size(freed)} in Docker")
    for name in found["volumes"]:
        logger.info(f"    [{me.name}] volume {name}")
    for name, why in sorted(found["kept"].items()):
        logger.info(f"    [{me.name}] kept {name[:12]}: {why}")
    me.report.freed_bytes = sum(found["blobs"].values())
    me.report.docker_freed_bytes = sum(found["images"].values())
    anything = found["releases"] or found["blobs"] or found["images"] or found["leftovers"]
    done = State.PRUNED if verb == "do" else State.WOULD_CHANGE
    me.says(done if anything else State.UNCHANGED, ", ".join(gone))
    return True
