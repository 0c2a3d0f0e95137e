"""Inspects a host, once a run, and decides from its facts: what it is missing, and what a deploy does there."""

from __future__ import annotations

import json
from dataclasses import asdict

from pydantic import TypeAdapter, ValidationError
from pyinfra import logger

from tasks.control.git.signatures import signatures, unsigned_files
from tasks.control.host_run import HostRun, Role
from tasks.control.operations.inspection_fact import Inspection
from tasks.control.rules import compose
from tasks.control.rules.drift import space_on_host
from tasks.control.rules.plan import plan_host
from tasks.control.rules.preflight import (
    NOT_INSPECTED,
    problems_of_bastion,
    problems_of_gpu_host,
    python_problem,
    unsigned,
)
from tasks.control.rules.spaces import space_problem
from tasks.control.run import Run
from tasks.control.summaries import show_facts
from tasks.shared.facts import HostFacts, Question
from tasks.shared.lock import Lock
from tasks.shared.signatures import SIGNERS
from tasks.shared.spaces import embedding_space

FACTS = TypeAdapter(HostFacts)
VERSION = TypeAdapter(list[int] | None)


def inspect(me: HostRun) -> None:
    """Ask the host, unless that was done: its facts, and what the report says of them. It changes nothing there."""
    if me.inspected:
        return
    found = me.target.get_fact(Inspection, question=question(me))
    if found:
        try:
            me.python = VERSION.validate_json(json.dumps(found["python"]), strict=True)
            me.asked = True
            if "store" in found:
                me.facts = FACTS.validate_json(json.dumps(found), strict=True)
        except ValidationError as error:
            logger.error(f"    [{me.name}] the inspection is not as expected: {error.errors()[0]}")
    if me.facts:
        me.tools = list(me.facts.store.tools)
        me.space = space_on_host(me.facts)
    show_facts(me)
    me.inspected = True


def question(me: HostRun) -> str:
    """What the inspection is asked about this host, as JSON. A bastion has no stack, and no target that it must not reach."""
    settings = me.settings
    asked = Question(store=settings.model_store, signers=SIGNERS, bundle=settings.bundle)
    if me.role is Role.GPU:
        asked = Question(
            store=settings.model_store,
            signers=SIGNERS,
            stack=settings.stack,
            service=settings.service,
            project=settings.project,
            egress=list(settings.egress),
        )
    return json.dumps(asdict(asked), sort_keys=True)


def problems(run: Run, me: HostRun, lock: Lock | None) -> list[str]:
    """Everything that this host is missing, as sentences; and what a rollout in these waves may not do to it."""
    inspect(me)
    if not me.asked:
        return [NOT_INSPECTED]
    if wrong := python_problem(me.python):
        return wrong
    if me.facts is None:
        return [NOT_INSPECTED]
    now = run.clock()
    rules = problems_of_gpu_host if me.role is Role.GPU else problems_of_bastion
    found = rules(me.facts, me.settings, lock, now)
    if lock is None:
        return found
    if me.facts.signers:
        found += unsigned(unsigned_files(me.settings, lock))
    if me.role is Role.GPU:
        me.report.to_space, me.made_of = embedding_space(lock), lock.summary()
        if run.is_rollout:
            found += spaces_that_would_mix(run, me, lock)
    return found


def spaces_that_would_mix(run: Run, me: HostRun, lock: Lock) -> list[str]:
    """Whether the waves of this run would mix two embedding spaces. Only then all hosts must be inspected first."""
    current = me.facts.store.current if me.facts else None
    if not space_problem(me.space, current, lock, me.settings, at_once=False):
        return []
    for each in run.targets:
        if each.target.connected:
            inspect(each)
    return space_problem(me.space, current, lock, me.settings, at_once=run.moves_at_once())


def plan(run: Run, me: HostRun) -> None:
    """Decide what a deploy does on this host, once a run."""
    if me.facts is None or me.plan is not None:
        return
    lock, settings = run.release, me.settings
    text = compose.override(lock, settings, run.tool.path(settings.model_store), True)
    git, goldens = signatures(settings, True), run.goldens.digest(lock)
    me.plan = plan_host(me.facts, settings, lock, text, git, goldens, run.clock())
