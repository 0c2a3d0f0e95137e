"""The program: it reads a question (facts.Question as JSON) and prints the facts of this host as one line of JSON."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence

from tasks.remote.inspect import container, egress, engine, machine, stack, store
from tasks.remote.inspect.reading import read
from tasks.shared.facts import HostFacts, Question

# A switch that runs meanwhile changes what is read. Then it is read again, this many times at most.
ATTEMPTS = 3


def inspect(question: Question) -> HostFacts:
    """Everything about this host, of one moment: the first and the last record that a switch writes stay the same meanwhile."""
    answers = egress.ask(question.egress)  # first, because the answers take time
    for _ in range(ATTEMPTS):
        before = switch_records(question.store)
        facts = read_host(question)
        if switch_records(question.store) == before:
            break
    return dataclasses.replace(facts, egress=answers())


def switch_records(path: str) -> list[str | None]:
    """The texts of the records that a switch changes first and last."""
    return [read(os.path.join(path, name)) for name in ("current", "state/pending", "state/frozen")]


def read_host(question: Question) -> HostFacts:
    """Everything about this host but its way out (`egress` is empty)."""
    docker = engine.docker()
    compose_stack = stack.stack(question.stack, question.service, question.project) if question.stack else None
    return HostFacts(
        python=list(sys.version_info[:3]),
        clock=time.time(),
        user=os.geteuid(),
        rsync=shutil.which("rsync") is not None,
        rrsync=shutil.which("rrsync") is not None,
        skopeo=shutil.which("skopeo") is not None,
        ssh_keygen=shutil.which("ssh-keygen") is not None,
        venv=importlib.util.find_spec("ensurepip") is not None,
        docker=docker,
        gpus=machine.gpus(),
        signers=machine.signers(question.signers),
        egress=[],
        store_filesystem=machine.filesystem(question.store),
        store=store.store(question.store),
        bundle=store.bundle(question.bundle) if question.bundle else None,
        stack=compose_stack,
        container=container.container(compose_stack, question.service, question.store)
        if docker and compose_stack and question.service
        else None,
    )


def as_line(facts: HostFacts) -> str:
    """The facts as one line of ASCII JSON. A byte of a file's name that is no UTF-8 becomes "?": JSON cannot say it."""
    text = json.dumps(dataclasses.asdict(facts), ensure_ascii=False).encode("utf-8", "replace")
    return json.dumps(json.loads(text), ensure_ascii=True, sort_keys=True)


def main(argv: Sequence[str]) -> None:
    """Print the facts that answer `argv[0]`, and end the process with code 0."""
    line = as_line(inspect(Question(**json.loads(argv[0]))))
    # The answer begins on a line of its own: a shell's start-up file may have printed words without a line's end.
    print("\n" + line, flush=True)
    # Python's own end would wait for a resolver that still asks.
    os._exit(0)
