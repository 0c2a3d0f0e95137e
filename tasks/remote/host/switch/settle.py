"""The end of a switch: the records of a confirmed release, and the operator's drain and readmit commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess

from tasks.remote.common.files import read_record, read_text, remove, write_file
from tasks.remote.host.intent import Intent
from tasks.remote.host.records import Records
from tasks.remote.host.switch.outcome import ACTIVE, Outcome
from tasks.shared.deadlines import COMMAND
from tasks.shared.errors import Refused


def run_command(what: str, words: str | None) -> None:
    """Run the operator's `drain` or `readmit`, a shell line; do nothing where they have none. It may run twice.

    Raise Refused where it fails, or takes longer than COMMAND seconds.
    """
    if not words:
        return
    # Its output goes into memory. A process that it leaves in the background would keep a pipe open, and a file can meet
    # a full disk.
    with open(os.memfd_create("output"), "r+b") as output:
        process = subprocess.Popen(
            ["sh", "-c", words], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = process.wait(COMMAND)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise Refused(f"{what} command", f"took longer than {COMMAND} s", next=f"setting {what}") from None
        if code:
            output.seek(0)
            found = output.read().decode("utf-8", "replace").strip()[-300:]
            raise Refused(f"{what} command", f"failed with code {code}", found=found, next=f"setting {what}")


def confirm(records: Records, intent: Intent) -> None:
    """Write what a confirmed release changes in the records. Doing it again, after a kill, gives the same."""
    records.journal("confirm", to=intent.target)
    write_file(os.path.join(records.store, "current"), f"{intent.target}\n")
    if intent.before != intent.target:
        write_file(os.path.join(records.store, "previous"), f"{intent.previous or ''}\n")
    # The override that was confirmed is kept: staging the same release with other settings replaces the other one.
    if text := read_text(os.path.join(intent.place.stack, intent.place.override)):
        write_file(os.path.join(records.store, "state", intent.target, "compose.confirmed.yaml"), text)


def finish(records: Records, intent: Intent, state: str) -> Outcome:
    """Readmit the host; then nothing is pending any more. A readmit that fails is noted, and nothing is undone.

    `state`: ACTIVE or WITHDRAWN, what the switch came to. A run without a readmit is not enough for a host on which an
    earlier one failed.
    """
    try:
        if not intent.readmit and os.path.lexists(records.not_readmitted):
            fix = f"the setting readmit, then deploy.py; or by hand, then rm {records.not_readmitted}"
            raise Refused(records.not_readmitted, "says that this host was not readmitted", next=fix)
        run_command("readmit", intent.readmit)
    except Refused as no:
        outcome = Outcome(state, False, no.error)
        records.note("not readmitted", **no.error)
        if intent.readmit:
            try:
                write_file(records.not_readmitted, json.dumps({"why": str(no)}))
            except OSError:
                return outcome  # a full disk: the intent stays, and the next run readmits the host
    else:
        outcome = Outcome(state)
        remove(records.not_readmitted)
    remove(records.pending)
    if state == ACTIVE:
        remove(records.recreate)
    return outcome


def is_readmitted(records: Records) -> bool:
    """Whether no readmit is still to be run: none has failed here, and no switch that is under way has one."""
    return not os.path.lexists(records.not_readmitted) and not read_record(records.pending).get("readmit")
