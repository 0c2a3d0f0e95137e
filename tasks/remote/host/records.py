"""The records of a store: current, previous, the journal, a pending switch, and what is known of each release here."""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import Any

from tasks.remote.common.files import read_record, read_text, remove, sync_folder, utc_now, write_file
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock, parse_lock

VERDICT = "smoke.json"


class Records:
    """Where the records of a store lie, and how they are read and written."""

    def __init__(self, store: str):
        self.store = store
        state = os.path.join(store, "state")
        self.pending = os.path.join(state, "pending")  # the intent of a switch that has not ended
        self.before = os.path.join(state, "before.override.yaml")  # our override as it was before that switch
        self.confirmation = os.path.join(state, "confirmation")  # the token that a new connection brought
        self.outcome = os.path.join(state, "outcome")  # how the last confirmed switch ended
        self.frozen = os.path.join(state, "frozen")  # why nothing more is tried here
        self.not_readmitted = os.path.join(state, "not-readmitted")  # why the operator's readmit failed
        self.recreate = os.path.join(state, "recreate")  # the container must be recreated

    # --------------------------------------------------------------------------------------- what is active, and since when

    def current(self) -> str | None:
        """The id of the release that was confirmed last, or None."""
        return (read_text(os.path.join(self.store, "current")) or "").strip() or None

    def serving(self) -> set[str]:
        """The ids of the releases that may run here: the current one, and the target of a pending switch."""
        return {name for name in (self.current(), read_record(self.pending).get("to")) if name is not None}

    def journal(self, step: str, **more: Any) -> None:
        """Write one line before a step begins, and put it on disk. Raise OSError where that fails."""
        line = json.dumps({"time": utc_now(), "step": step, **more}, ensure_ascii=True)
        path = os.path.join(self.store, "journal.jsonl")
        try:
            with open(path, "a+b") as file:
                # A power cut or a full disk can cut a line short. It ends here, so that this line stays readable.
                was_cut = file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
                file.write(b"\n" * bool(was_cut) + line.encode("ascii") + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            error.filename = error.filename or path
            raise

    def note(self, step: str, **more: Any) -> None:
        """Write a journal line that only explains. A full disk does not stop the step that follows."""
        with contextlib.suppress(OSError):
            self.journal(step, **more)

    def refuse_other_kinds(self, release_id: str) -> None:
        """Raise Refused where something else than a file is in the place of a file that a switch to this release writes."""
        names = ("current", "previous", "journal.jsonl", f"state/{release_id}/compose.confirmed.yaml")
        places = [os.path.join(self.store, name) for name in names]
        places += [self.before, self.pending, self.not_readmitted, self.frozen]
        places += [self.confirmation, self.outcome, self.recreate]
        for path in places:
            if os.path.lexists(path) and not os.path.isfile(path):
                raise Refused(path, "is not a file", "a file or nothing", "something else", "move it away")

    def require_recreate(self) -> None:
        """Note that the service's container must be recreated. The next switch does that."""
        write_file(self.recreate, "")

    # ------------------------------------------------------------------------------------------------- what a release is here

    def lock(self, release_id: str) -> Lock:
        """The lock of a release that is here. Raise Refused where it cannot be read, or is another release's."""
        root = os.path.join(self.store, "releases", release_id)
        path, fix = os.path.join(root, "lock.json"), "deploy.py of that release's lock, which brings it back"
        try:
            found = parse_lock(read_text(path) or "", path)
        except Refused as no:
            error = no.error
            fix = f"{fix}; or rm -r {root}, if nothing uses it"
            raise Refused(error["where"], error["what"], error["expected"], error["found"], fix) from None
        if found.id != release_id:
            raise Refused(path, "is another release's lock", release_id[:12], found.short, fix)
        return found

    def state_file(self, release_id: str, name: str) -> str:
        """The path of a file that tells something of a release on this host alone."""
        return os.path.join(self.store, "state", release_id, name)

    def mark_verified(self, release_id: str, how: str) -> None:
        """Note that every byte of the release was hashed just now, and by which verb."""
        os.makedirs(os.path.join(self.store, "state", release_id), exist_ok=True)
        at = {"at": utc_now(), "epoch": int(time.time()), "how": how}
        write_file(self.state_file(release_id, "verified-at"), json.dumps(at) + "\n")

    def verified_at(self, release_id: str) -> str | None:
        """When every byte of the release was hashed here last (UTC, ISO 8601), or None."""
        found = read_record(self.state_file(release_id, "verified-at")).get("at")
        return None if found is None else str(found)

    def forget_verified(self, release_id: str) -> None:
        """Note that nobody knows any more whether the release's bytes are right."""
        remove(self.state_file(release_id, "verified-at"))

    # --------------------------------------------------------------------------------- what a release is to be tested with

    def candidate(self, release_id: str) -> str:
        """The directory of the files for the next smoke test of a release. It goes when that test passes."""
        return self.state_file(release_id, "candidate")

    def pass_candidate(self, release_id: str) -> None:
        """Make the candidate's files the release's own: goldens, override, signatures and the result of the test."""
        folder, state = self.candidate(release_id), os.path.join(self.store, "state", release_id)
        # The verdict moves last: while it is in the candidate, another program can finish this.
        for name in sorted(os.listdir(folder), key=lambda name: (name == VERDICT, name)):
            os.rename(os.path.join(folder, name), os.path.join(state, name))
            sync_folder(state)
        os.rmdir(folder)
        sync_folder(state)

    def settle(self, release_id: str) -> None:
        """Finish a `pass_candidate` that was killed. Do nothing where the candidate's test has not passed."""
        if read_record(os.path.join(self.candidate(release_id), VERDICT)).get("ok") is True:
            self.pass_candidate(release_id)
