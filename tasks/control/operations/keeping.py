"""What nothing uses goes."""

from __future__ import annotations

import json
from typing import Any

from pyinfra import host, logger, state
from pyinfra.api import operation

from tasks.control.preflight import size
from tasks.control.reporting import recorder as report
from tasks.control.settings import Settings
from tasks.control.tool import call, ensure_tool, expect, fail, guarded
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock


@operation(is_idempotent=True)
def prune(settings: Settings, lock: Lock | None):
    """Delete old releases, blobs and images that nothing uses; with --dry, tell what would go."""
    document = json.dumps({"keep": [lock.id] if lock else [], "blobs": sorted(lock.blobs()) if lock else []})

    def work(host: Any, verb: str) -> bool:
        seen = report.RESULTS[host.name]["seen"]
        if not seen:
            raise Refused(host.name, "could not be looked at", next="run again with -v")
        if not seen["store_filesystem"]["exists"]:
            report.record(host.name, state="empty")
            return True
        ensure_tool(host)
        found = expect(call(host, "prune", verb, keep=settings.keep_releases, document=document, deadline=3600))
        gone = [f"release {name[:12]}: {size(freed)}" for name, freed in sorted(found["releases"].items())]
        for name, freed in sorted(found["images"].items()):
            logger.info(f"    [{host.name}] image {name}: up to {size(freed)} in Docker")
        for name in found["volumes"]:
            logger.info(f"    [{host.name}] volume {name}")
        for name, why in sorted(found["kept"].items()):
            logger.info(f"    [{host.name}] kept {name[:12]}: {why}")
        some = found["releases"] or found["blobs"] or found["images"] or found["leftovers"]
        report.record(host.name, freed_bytes=sum(found["blobs"].values()), why=", ".join(gone))
        report.record(host.name, docker_freed_bytes=sum(found["images"].values()))
        report.record(host.name, state="unchanged" if not some else "pruned" if verb == "do" else "would change")
        return True

    if state.is_executing:
        yield guarded(lambda host: work(host, "do"))
    else:
        try:
            work(host, "plan")
        except Refused as no:
            fail(host, str(no))
