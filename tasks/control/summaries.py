"""From a host's facts to its row of the report: what it serves, what that was proven with, who holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.control.host_run import HostRun
from tasks.control.rules.drift import condition, space_on_host, state_of
from tasks.shared.facts import Container


def show_facts(me: HostRun) -> None:
    """Into the report: what the host serves before anything is done to it."""
    facts, row = me.facts, me.report
    if facts is None or facts.stack is None:
        return
    store, container = facts.store, facts.container
    # What runs counts, not what the record says.
    serves = container.release if container and container.state == "running" else None
    row.release, row.from_release, row.since = serves, store.current, store.confirmed_at
    row.space, row.from_space = space_on_host(facts, serves), space_on_host(facts)
    row.container = condition(container) + _restarts(container) if container else None
    if facts.gpus:
        row.gpu = f"{len(facts.gpus)} x {facts.gpus[0].name}, driver {facts.gpus[0].driver}"
    row.disk_free_bytes = facts.store_filesystem.free_bytes
    row.kept = [name for name in store.releases or [] if name not in (store.current, serves)]
    row.previous = store.previous
    row.lease = None if store.lease is None else describe_lease(store.lease)
    me.not_readmitted = store.not_readmitted is not None


def show_proof(me: HostRun, release_id: str | None) -> None:
    """Into the report: what a release was proven with on this host, by its last hashing and its smoke test."""
    if me.facts is None:
        return
    about = state_of(me.facts, release_id)
    me.report.verified = about.verified.at if about.verified else None
    smoke = about.smoke
    me.report.cosine = smoke.cosine if smoke else None
    me.report.latency_ms = smoke.latency_ms if smoke else None
    me.report.versions = smoke.versions if smoke else None


def show_smoke(me: HostRun, answer: Mapping[str, Any]) -> None:
    """Into the report: what a smoke test of this run said."""
    me.report.cosine = (answer.get("cosine") or {}).get("mean")
    me.report.latency_ms = (answer.get("latency_ms") or {}).get("page")
    me.report.versions = answer.get("versions")
    me.report.outbound_attempts = answer["outbound_attempts"]


def describe_lease(lease: Mapping[str, Any]) -> str:
    """Who holds a host, and since when."""
    if not lease:
        return "unknown: lease.json is gone, and the process in .lease.lock lives"
    return f"{lease.get('id')} of {lease.get('who')}, {lease.get('why')} since {lease.get('since')}"


def _restarts(container: Container) -> str:
    """Between two deaths, a service that crashes in a loop is healthy."""
    count = container.restarts
    return f", {count} restart{'s' * (count != 1)}" if count else ""
