"""The store's records: what is active (current, previous, the journal, the intent of a switch that is under way), a
release's lock, and what it is tested with."""

from __future__ import annotations

import contextlib
import json
import os

from tasks.remote.common.files import read_record, read_text, sync_folder, utc_now
from tasks.shared.errors import Refused
from tasks.shared.lock import parse_lock

VERDICT = "smoke.json"


class Records:
    """Where they lie, and how they are written: one line a step, on disk before the step begins."""

    def __init__(self, store):
        self.store = store
        self.before, self.pending, self.frozen, self.away, self.confirmation, self.outcome, self.recreate = (
            os.path.join(store, "state", name)
            for name in (
                *("before.override.yaml", "pending", "frozen", "not-readmitted"),
                *("confirmation", "outcome", "recreate"),
            )
        )

    def refuse_odd(self, release_id):
        """Where a switch to this release writes there are files of ours, or nothing: half-way it would be too late to hear."""
        names = ("current", "previous", "journal.jsonl", f"state/{release_id}/compose.confirmed.yaml")
        places = [os.path.join(self.store, name) for name in names]
        places += [self.before, self.pending, self.away, self.frozen, self.confirmation, self.outcome, self.recreate]
        for path in places:
            if os.path.lexists(path) and not os.path.isfile(path):
                raise Refused(path, "is not a file", "a file or nothing", "something else", "move it away")

    def journal(self, step, **more):
        """One line before each step; on disk before the step begins."""
        line = json.dumps({"time": utc_now(), "step": step, **more}, ensure_ascii=True)
        path = os.path.join(self.store, "journal.jsonl")
        try:
            with open(path, "a+b") as file:
                # A line that a power cut or a full disk cut short ends here, and takes no other with it.
                torn = file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
                file.write(b"\n" * bool(torn) + line.encode("ascii") + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            error.filename = error.filename or path
            raise

    def tell(self, step, **more):
        """A line that explains, and decides nothing: a full disk is no reason not to go on with what puts a host right."""
        with contextlib.suppress(OSError):
            self.journal(step, **more)

    def intent(self):
        """What the switch that is under way, or was cut off, is about; None without one. Refused: nobody can read it."""
        text = read_text(self.pending)
        if text is None:
            return None
        try:
            found = json.loads(text)
            names = [found[key] for key in ("to", "stack", "override", "project", "service")]
            if all(isinstance(name, str) for name in [*names, found["from"] or ""]):
                return found
        except (ValueError, LookupError, TypeError):
            pass
        mend = f"journal.jsonl beside it tells what was under way; rm {self.pending}, then deploy.py"
        raise Refused(self.pending, "is no record of a switch", "a JSON object", ascii(text[:80]), mend)

    def lock(self, release_id):
        """The lock of a release that is here. Refused: nobody can read it, or it is another release's."""
        root = os.path.join(self.store, "releases", release_id)
        path, mend = os.path.join(root, "lock.json"), "deploy.py of that release's lock, which brings it back"
        try:
            found = parse_lock(read_text(path) or "", path)
        except Refused as no:
            said = (no.error.get(key, "") for key in ("where", "what", "expected", "found"))
            raise Refused(*said, f"{mend}; or rm -r {root}, if nothing uses it") from None
        if found.id != release_id:
            raise Refused(path, "is another release's lock", release_id[:12], found.short, mend)
        return found

    def candidate(self, release_id):
        """Where what a release is tested with lies until its smoke test has passed; while it is there, none has."""
        return os.path.join(self.store, "state", release_id, "candidate")

    def pass_candidate(self, release_id):
        """What a release was tested with becomes what it stands for: goldens, override, signatures, the test's own answer."""
        folder, state = self.candidate(release_id), os.path.join(self.store, "state", release_id)
        # The verdict last: while it is here, this can be ended by whoever comes next.
        for name in sorted(os.listdir(folder), key=lambda name: (name == VERDICT, name)):
            os.rename(os.path.join(folder, name), os.path.join(state, name))
            sync_folder(state)
        os.rmdir(folder)
        sync_folder(state)

    def settle(self, release_id):
        """End what a kill in the middle of `pass_candidate` left: a test that had passed."""
        if read_record(os.path.join(self.candidate(release_id), VERDICT)).get("ok") is True:
            self.pass_candidate(release_id)

    def serving(self):
        """The releases that may run here: the current one, and what a switch that was cut off has brought."""
        return {self.current(), read_record(self.pending).get("to")} - {None}

    def current(self):
        return (read_text(os.path.join(self.store, "current")) or "").strip() or None
