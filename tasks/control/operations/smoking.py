"""The smoke test of a release, on the bastion and on GPU hosts alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.control.host_run import HostRun
from tasks.control.run import Run
from tasks.control.tool import call, expect
from tasks.shared.lock import Lock


def smoke(run: Run, me: HostRun, lock: Lock, texts: Mapping[str, str], stack: str | None = None) -> Mapping[str, Any]:
    """Run the release's smoke test by Compose; return its answer. Raises Refused with what it found wrong.

    texts: the files that it takes, {name: text}, the one for Compose first. stack: the file that this one stands beside.
    """
    within = me.settings.smoke_deadline  # an earlier run's test may still be under way: it ends first
    candidate = call(
        run, me, "engine", "candidate", release=lock.id, document=dict(texts), within=within, deadline=within + 60
    )
    folder = expect(candidate)["folder"]
    files = [f"{folder}/{next(iter(texts))}"]
    if stack:
        files.insert(0, stack)
    more: dict[str, Any] = {"release": lock.id, "project": f"hf-smoke-{lock.short}", "file": files}
    more["project_directory"] = me.settings.stack if stack else folder
    if lock.delivery == "online":
        bring = me.settings.fetch_deadline
        brought = call(
            run, me, "engine", "bring", document=lock.document, within=bring, deadline=2 * bring + 60, **more
        )
        me.report.loaded_bytes = expect(brought)["bytes"]
    return expect(call(run, me, "engine", "smoke", within=within, deadline=within + 60, **more))
