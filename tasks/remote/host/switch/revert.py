"""The way back: the records, the override and the service as they were before a switch, also after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import time

from tasks.remote.common.docker import engine_answers
from tasks.remote.common.files import read_text, remove, utc_now, write_file
from tasks.remote.host.container import RUNNING
from tasks.remote.host.intent import Intent, read_intent
from tasks.remote.host.records import Records
from tasks.remote.host.service import Service, is_port_lost, restart_engine
from tasks.remote.host.switch.outcome import ACTIVE, FROZEN, WITHDRAWN, Outcome
from tasks.remote.host.switch.settle import confirm, finish, is_readmitted
from tasks.shared.deadlines import REVERT

TRIES = 3  # what a power cut leaves of a container can make Compose fail once


def recover(records: Records) -> Outcome | None:
    """Finish what a killed run left: a confirmed switch goes forward, any other is undone. None where nothing is pending.

    On a frozen host nothing is tried.
    """
    intent = read_intent(records) if read_text(records.frozen) is None else None
    if intent is None:
        return None
    if intent.confirmed:
        confirm(records, intent)
        return finish(records, intent, ACTIVE)
    return revert(records, intent)


def revert(records: Records, intent: Intent) -> Outcome:
    """Put back what was before the switch. When that fails too, freeze the host: nothing more is tried on it."""
    records.note("revert", to=intent.before)
    service = intent.place.find()
    until = time.monotonic() + max(intent.within, REVERT)
    failures = 0
    while True:
        try:
            put_back(records, service, intent, until - time.monotonic(), from_scratch=failures > 0)
            break
        except Exception as error:
            is_up = engine_answers()
            # Two failures use up no try: an engine that is down comes back, and a port in use can become free.
            if is_up and "address already in use" not in str(error):
                failures += 1
            if time.monotonic() >= until or (is_up and failures >= TRIES):
                return freeze(records, service, intent, error)
            if is_up:
                restarted = is_port_lost(str(error)) and restart_engine()
                records.note("revert again", why=str(error)[-300:], engine_restarted=restarted)
            time.sleep(1)
    records.note("withdrawn", to=intent.before)
    return finish(records, intent, WITHDRAWN)


def freeze(records: Records, service: Service, intent: Intent, error: Exception) -> Outcome:
    """Note that this host could not be put back, and why. On a full disk the mark is missing; then the next run finds the intent."""
    why = f"reverting to {intent.before} failed: {error}"
    with contextlib.suppress(OSError):
        mark = {"why": why, "at": utc_now(), "logs": last_words(service)}
        write_file(records.frozen, json.dumps(mark))
    records.note("frozen", why=why)
    return Outcome(FROZEN, is_readmitted(records))


def put_back(records: Records, service: Service, intent: Intent, within: float, from_scratch: bool) -> None:
    """Write the records and the override of before, and bring the service back to them, in `within` seconds.

    `from_scratch`: remove the service's containers first, unless the container from before is there, untouched.
    """
    is_untouched = untouched(service, intent)
    if from_scratch and not is_untouched:
        service.clear()  # before anything is written: its logs may be what fills the disk
    put_back_records(records, service, intent)
    if is_untouched:
        service.remove_unused_loader()
    elif intent.was_running:
        before = service.container()
        service.up(within)
        if intent.was_healthy:  # a service that was not healthy before need not get healthy now
            service.wait_healthy(within, before)
    elif intent.had_container:
        service.must("up", "--no-start", "--no-build", "--pull", "never", service.name)
        service.must("stop", service.name)
        service.remove_unused_loader()
    else:
        service.must("rm", "--stop", "--force", service.name)
        service.remove_unused_loader()


def put_back_records(records: Records, service: Service, intent: Intent) -> None:
    """Make `current` and our override what they were."""
    current = os.path.join(records.store, "current")
    if not intent.before:
        remove(current)
    elif records.current() != intent.before:
        write_file(current, f"{intent.before}\n")
    if not intent.had_override:
        remove(service.override)
        return
    text = read_text(records.before)
    if text is None:
        raise FileNotFoundError(2, "No such file or directory", records.before)
    if read_text(service.override) != text:
        write_file(service.override, text)


def untouched(service: Service, intent: Intent) -> bool:
    """Whether the container from before is the only one, and as it was: the switch failed before it changed it."""
    found = service.container() if service.containers() == [intent.container] else None
    if found is None:
        return False
    is_alike = found.status in RUNNING if intent.was_running else found.status == intent.status
    return is_alike and (found.is_well or not intent.was_healthy)


def last_words(service: Service) -> str:
    """The service's log, or "" if it cannot be read: that must not stop the way back."""
    with contextlib.suppress(Exception):
        return service.logs()
    return ""
