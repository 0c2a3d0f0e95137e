"""What is checked before a switch begins, and after it: every check raises Refused, and none changes the host."""

from __future__ import annotations

import json
import os
from typing import Any

from tasks.remote.common.docker import docker
from tasks.remote.common.files import read_text, remove, write_file
from tasks.remote.host import lease, signed
from tasks.remote.host.intent import read_intent
from tasks.remote.host.records import Records
from tasks.remote.host.service import Service
from tasks.remote.host.switch.request import Recheck, Request
from tasks.shared.errors import Refused
from tasks.shared.stack import MARKER


def check(request: Request) -> dict[str, Any]:
    """Refuse what `activate` would refuse before it changes anything. Return whether the container must be recreated."""
    records = Records(request.store)
    refuse_frozen(records)
    read_intent(records)
    signed.check(request.store, request.release, request.signers)
    check_before(records, request.place.find(), request.release, request.override)
    read_goldens(request)
    return {"recreate": os.path.exists(records.recreate)}


def recheck(request: Recheck) -> dict[str, Any]:
    """Refuse unless the container that was confirmed serves still: never restarted, with all that it was given."""
    current = Records(request.store).current()
    if current != request.release:
        what = "has another current release"
        raise Refused(request.store, what, request.release[:12], str(current)[:12], "tasks/status.py")
    service = request.place.find()
    service.soak(request.confirmed, 0)
    found = service.container()
    if found is None:
        raise Refused(service.name, "did not stay up", "the container that was confirmed", "no container")
    service.check_inside(found, request.store, request.release, request.expect_env)
    return {}


def refuse_frozen(records: Records) -> None:
    """Refuse where an earlier switch could not be undone: nothing more is tried until a person removes the mark."""
    text = read_text(records.frozen)
    if text is not None:
        try:
            why = json.loads(text)["why"]
        except (ValueError, LookupError, TypeError):
            why = text
        what, fix = "says that this host is frozen", "fix the service, then remove that file"
        raise Refused(records.frozen, what, "no such file", str(why)[:800], fix)


def refuse_lost_lease(request: Request) -> None:
    """Refuse where the rollout no longer holds this host: its connection broke, or somebody took the lease."""
    holder = lease.show(request.store) or {}
    if request.lease and holder.get("id") != request.lease:
        found = lease.describe(holder) if holder else "none"
        what = "lost its lease: somebody took it, or the connection broke"
        raise Refused(request.store, what, request.lease, found, "tasks/status.py, then the same again")


def read_goldens(request: Request) -> dict[str, Any]:
    """The release's goldens, which the probe asks for; {} without a probe where there are none.

    Refuse a probe without goldens: a service that embeds wrongly would be confirmed.
    """
    path = os.path.join(request.store, "state", request.release, "goldens.json")
    found: dict[str, Any] = {}
    try:
        document = json.loads(read_text(path) or "{}")
        if next(iter(document["classes"].values()))["queries"]:
            found = document
    except (ValueError, AttributeError, TypeError, LookupError, StopIteration):
        pass
    if request.probe and not found:
        fix = "deploy.py, which brings them; where smoke_command embeds nothing, no setting probe"
        raise Refused(path, "holds nothing that the probe could ask", "the release's goldens", "none", fix)
    return found


def check_before(records: Records, service: Service, release_id: str, override: str) -> None:
    """Refuse what can be known before anything changes: records, release, override, and what Compose says of it."""
    records.refuse_other_kinds(release_id)
    root = os.path.join(records.store, "releases", release_id)
    if not os.path.isfile(os.path.join(root, "lock.json")):
        raise Refused(root, "is not built", "an admitted release", "no lock.json in it", "deploy.py")
    records.lock(release_id)
    if read_text(override) is None:
        raise Refused(override, "does not exist", "an override whose smoke test passed", "no file", "deploy.py")
    refuse_foreign_override(service)
    refuse_read_only_stack(service)
    files = service.files(override)
    done = docker("compose", "-p", service.project, "--project-directory", service.stack, *files, "config", "-q")
    if done.returncode:
        found = done.stderr.strip()[-400:]
        raise Refused(override, "is refused by docker compose config", found=found, next="look at group_data")


def refuse_foreign_override(service: Service) -> None:
    """Refuse where somebody else's file, or a link, has the name of our override."""
    in_place = read_text(service.override)
    if in_place is not None and not in_place.startswith(MARKER):
        raise Refused(service.override, "is not ours", MARKER, in_place[:40], "move what it says into the stack's file")
    if os.path.islink(service.override):
        found = f"a link to {os.readlink(service.override)}"
        raise Refused(service.override, "is a link, and would become a file", "a file or nothing", found, "remove it")


def refuse_read_only_stack(service: Service) -> None:
    """Raise OSError, which names the stack's directory, where no file can be written there."""
    attempt = f"{service.override}.try"
    try:
        write_file(attempt, "")
        remove(attempt)
    except OSError as error:
        error.filename = service.stack
        raise
