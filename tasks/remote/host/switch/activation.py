"""One activation: drain, switch, health, probe, soak, confirmation; or the way back."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.remote.common.files import as_refused, read_text, remove, write_file
from tasks.remote.host import signed
from tasks.remote.host.container import RUNNING, Container
from tasks.remote.host.intent import Intent
from tasks.remote.host.probe import probe
from tasks.remote.host.records import Records
from tasks.remote.host.service import Service
from tasks.remote.host.switch.checks import check_before, read_goldens, refuse_frozen, refuse_lost_lease
from tasks.remote.host.switch.confirmation import Announce, await_confirmation
from tasks.remote.host.switch.outcome import ACTIVE
from tasks.remote.host.switch.request import Request
from tasks.remote.host.switch.revert import last_words, recover, revert
from tasks.remote.host.switch.settle import confirm, finish, run_command
from tasks.shared.errors import Refused


@dataclass(frozen=True)
class Activation:
    """What every step of one activation needs.

    container_before: the service's container before this switch, or None. recovered: how a killed run before this one
    ended, or None.
    """

    request: Request
    records: Records
    service: Service
    goldens: Mapping[str, Any]
    intent: Intent
    container_before: Container | None
    recovered: str | None


def activate(request: Request, announce: Announce) -> dict[str, Any]:
    """Bring the service to the release, or leave it as it was; return the answer, with its state.

    `announce` gets the answer that is to be confirmed. Raise Refused before this switch changes anything. Raise OSError
    if the release is confirmed but a record cannot be written; the next run finishes it.
    """
    activation = prepare(request)
    records, intent, began = activation.records, activation.intent, time.monotonic()
    try:
        found, cosine = switch(activation)
        answer = {**describe(activation, found), "cosine": cosine, "recovered": activation.recovered}
        answer["seconds"] = round(time.monotonic() - began, 2)
        await_confirmation(records, request.confirm, announce, answer)
        check_again(activation, found)
        ignore_signals()
        intent = dataclasses.replace(intent, confirmed=True)
        write_file(records.pending, intent.text())
    except Exception as error:
        ignore_signals()  # nothing interrupts the way back
        return withdraw(activation, error)
    # No way back from here. If a step fails, the pending intent says "confirmed" and the next run finishes.
    confirm(records, intent)
    return {**answer, **finish(records, intent, ACTIVE).answer()}


def prepare(request: Request) -> Activation:
    """Check everything, finish what a killed run left, and note the intent. Return the activation.

    Raise Refused before this switch changes anything.
    """
    records, service = Records(request.store), request.place.find()
    refuse_frozen(records)
    refuse_lost_lease(request)
    recovered = recover(records)
    refuse_frozen(records)
    signed.check(request.store, request.release, request.signers)
    check_before(records, service, request.release, request.override)
    goldens = read_goldens(request)
    container, override = service.container(), read_text(service.override)
    intent = intent_of(request, records.current(), container, had_override=override is not None)
    records.journal("begin", **{"from": intent.before, "to": intent.target, "who": intent.who, "why": intent.why})
    if override is not None:
        write_file(records.before, override)
    remove(records.confirmation)
    write_file(records.pending, intent.text())
    return Activation(request, records, service, goldens, intent, container, recovered.state if recovered else None)


def intent_of(request: Request, current: str | None, container: Container | None, had_override: bool) -> Intent:
    """The intent of this switch, with what is needed to undo it. `container`: the service's, before the switch."""
    return Intent(
        before=current,
        target=request.release,
        previous=request.previous or current,
        place=request.place,
        within=request.within,
        had_container=container is not None,
        had_override=had_override,
        # A container in a crash loop counts as running: if the way back stopped it, it would stay stopped after a reboot.
        was_running=container is not None and container.status in RUNNING,
        was_healthy=container is not None and container.is_well,
        container=container.id if container else None,
        status=container.status if container else None,
        readmit=request.readmit,
        who=request.who,
        why=request.why,
    )


def switch(activation: Activation) -> tuple[Container, float | None]:
    """Drain, start the release, wait for its health, check it, soak. Return its container, and the probe's cosine or None."""
    request, records, service = activation.request, activation.records, activation.service
    records.journal("drain")
    run_command("drain", request.drain)
    records.journal("switch", to=request.release)
    began = time.monotonic()  # starts after the drain, because the drain has its own deadline
    override = read_text(request.override)
    if override is None:
        raise Refused(request.override, "does not exist", "an override whose smoke test passed", "no file", "deploy.py")
    write_file(service.override, override)
    service.up(request.within, must_recreate(activation))
    left = request.within - (time.monotonic() - began)
    found = service.wait_healthy(max(1, left), activation.container_before)
    took = round(time.monotonic() - began, 2)
    records.journal("check", to=request.release, container=found.id, switch_seconds=took)
    cosine = check_served(activation, found)
    records.journal("soak", seconds=request.soak)
    service.soak(found.identity, request.soak)
    return found, cosine


def must_recreate(activation: Activation) -> bool:
    """Whether Compose must make a new container: the request or a note asks for it, or this same release was not well."""
    if activation.request.recreate or os.path.exists(activation.records.recreate):
        return True
    return activation.intent.before == activation.intent.target and not activation.intent.was_healthy


def check_served(activation: Activation, found: Container) -> float | None:
    """Check what the process has, and embed through it. Return the lowest mean cosine, or None without a probe."""
    request = activation.request
    activation.service.check_inside(found, request.store, request.release, request.expect_env or {})
    return probe(request.probe, activation.goldens)


def check_again(activation: Activation, found: Container) -> None:
    """Check the service once more after the confirmation: nobody watched it while the controller was logging in."""
    activation.service.soak(found.identity, 0)
    check_served(activation, found)


def describe(activation: Activation, found: Container) -> dict[str, Any]:
    """The fields that say what serves now, and that the recheck compares."""
    intent, container = activation.intent, activation.container_before
    is_new = container is None or container.id != found.id or intent.before != intent.target
    return {
        "changed": is_new,
        "from": intent.before,
        "to": intent.target,
        "container": found.id,
        "started": found.started,
        "networks": sorted(found.networks),
    }


def withdraw(activation: Activation, error: Exception) -> dict[str, Any]:
    """Go back because of `error`. Return the answer: a failure, with the last lines of the service's log."""
    why, logs = as_refused(error, "activate").error, last_words(activation.service)
    outcome = revert(activation.records, activation.intent)
    answer = {**outcome.answer(), "ok": False, "logs": logs}
    where = outcome.state if outcome.readmitted else f"{outcome.state}, not readmitted"
    return {**answer, "error": {**why, "where": f"{where}: {why['where']}"}}


def ignore_signals() -> None:
    """Let no signal interrupt what follows."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
