"""Activates a release on a host, alone: journal, drain, switch, health, probe, soak, confirm; else it puts the old one back.

    switch activate --store S --release ID --stack DIR --override NAME --project P --service N
                    --within SEC --soak SEC --confirm SEC [--recreate] [--previous ID] [--lease ID]
                    (stdin: {"who", "why", "probe", "expect_env", "drain", "readmit"})
    switch check    --store S --release ID --stack DIR --override NAME --project P --service N
                    (stdin: {"probe"})   whether it could be activated; changes nothing
    switch recheck  --store S --release ID --stack DIR --override NAME --project P --service N
                    (stdin: {"container", "started", "networks", "expect_env"})   whether what was confirmed serves still
    switch confirm  --store S --token T --within SEC     over a new connection; prints how the activation ended
    switch recover  --store S --within SEC               finishes or undoes what a killed activation left

`activate` runs detached. When the controller dies, the line is cut or a deadline passes, the host ends with the new
release, confirmed, or with the old one. It answers when the new release works ("awaiting"), and puts the old one back
unless `confirm` comes in time: a rollout that cannot log in again must not stand. Each step is in journal.jsonl before it
begins. `recover` finishes a run that was killed, at boot or when the next run starts. When the way back fails, the host is
frozen: nothing more is tried, and `state/frozen` says why.

One JSON line on standard output. Its "state" is active, withdrawn, frozen, unknown or awaiting; "readmitted" is false
where the operator's readmit command failed, or is still to be run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from tasks.remote.common.docker import engine_answers
from tasks.remote.common.files import hold_lock, print_answer
from tasks.remote.host.container import Identity
from tasks.remote.host.records import Records
from tasks.remote.host.service import Place
from tasks.remote.host.switch.checks import check, recheck
from tasks.remote.host.switch.confirmation import bring_confirmation, switching_lock
from tasks.remote.host.switch.detached import activate_detached
from tasks.remote.host.switch.outcome import ACTIVE, WITHDRAWN
from tasks.remote.host.switch.request import Recheck, Request
from tasks.remote.host.switch.revert import recover
from tasks.remote.host.switch.settle import is_readmitted
from tasks.shared.signatures import SIGNERS


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="switch")
    parser.add_argument("verb", choices=["activate", "check", "recheck", "confirm", "recover"])
    parser.add_argument("--store", required=True)
    for option in ("--release", "--stack", "--override", "--project", "--service", "--token", "--previous", "--lease"):
        parser.add_argument(option, default="")
    parser.add_argument("--within", type=float, default=600)
    parser.add_argument("--soak", type=float, default=0)
    parser.add_argument("--confirm", type=float, default=60)
    parser.add_argument("--recreate", action="store_true")
    parser.add_argument("--signers", default=SIGNERS)
    args = parser.parse_args(argv)
    os.umask(0o022)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a lost connection is no reason to stop in the middle
    return print_answer(lambda: run(args), args.store)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The answer of the verb that was asked for."""
    if args.verb == "activate":
        return activate_detached(request_of(args, json.load(sys.stdin)))
    if args.verb == "check":
        return check(request_of(args, json.load(sys.stdin)))
    if args.verb == "recheck":
        return recheck(recheck_of(args, json.load(sys.stdin)))
    if args.verb == "confirm":
        return bring_confirmation(args.store, args.token, args.within)
    return recover_alone(args.store, args.within)


def request_of(args: argparse.Namespace, document: dict[str, Any]) -> Request:
    """The switch that options and standard input ask for."""
    return Request(
        store=args.store,
        release=args.release,
        place=place_of(args),
        signers=args.signers,
        within=args.within,
        soak=args.soak,
        confirm=args.confirm,
        recreate=args.recreate,
        previous=args.previous,
        lease=args.lease,
        **{key: document.get(key) for key in ("who", "why", "probe", "expect_env", "drain", "readmit")},
    )


def recheck_of(args: argparse.Namespace, document: dict[str, Any]) -> Recheck:
    """The recheck that options and standard input ask for."""
    confirmed = Identity(document["container"], document["started"], frozenset(document["networks"]))
    return Recheck(args.store, args.release, place_of(args), confirmed, document["expect_env"])


def place_of(args: argparse.Namespace) -> Place:
    return Place(args.stack, args.override, args.project, args.service)


def recover_alone(store: str, within: float) -> dict[str, Any]:
    """Finish or undo what a killed run left, once the engine is up: undoing it without an engine would freeze the host."""
    until = time.monotonic() + within
    while not engine_answers() and time.monotonic() < until:
        time.sleep(1)
    with hold_lock(switching_lock(store), "is being switched", within=within):
        records = Records(store)
        outcome = recover(records)
        if outcome is None:
            return {"recovered": None, "readmitted": is_readmitted(records)}
        fine = outcome.state in (ACTIVE, WITHDRAWN) and outcome.readmitted
        return {"recovered": outcome.state, "readmitted": outcome.readmitted, "ok": fine}
