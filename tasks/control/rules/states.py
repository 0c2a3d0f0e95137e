"""Every state that a host can be in at the end of a run: what it means, whether it is good, and what to do about it.

The report's colours, the exit code and the table of states in docs/troubleshooting.md are made from this list.
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """A state: its name for people, whether it is good news, what it means, and what to do where it is not good.

    `on_the_way`: good news only while the run goes on; a run that ends here was cut short.
    """

    label: str
    good: bool
    meaning: str
    fix: str
    on_the_way: bool

    # good
    ACTIVE = ("active", True, "The service was switched to the release, or its release was repaired, in this run.")
    UNCHANGED = (
        "unchanged",
        True,
        "The service runs this release already. Nothing was moved, and nothing was switched.",
    )
    PROVEN = ("proven", True, "The bastion has every blob, and the release's goldens are in git.")
    UP_TO_DATE = ("up to date", True, "The bastion's store holds every blob of the lock.")
    IN_SYNC = ("in sync", True, "The service runs what was confirmed, with its mount, image and environment.")
    SWITCHING = ("switching", True, "Another run switches this host now, or a switch ends by itself.")
    EMPTY = ("empty", True, "The host serves no release yet.")
    INTACT = ("intact", True, "Every byte that was hashed is as locked.")
    PRUNED = ("pruned", True, "Releases, blobs or images that nothing uses were deleted.")
    UNLOCKED = ("unlocked", True, "Nobody holds a lease on this host.")
    WRITTEN = ("written", True, "The lock, the bundle or the list of contents was written.")
    OUT_OF_SERVICE = ("out of service", True, "The inventory says `out_of_service`. The run left the host alone.")
    # good as far as it goes
    FIT = ("fit", True, "Preflight found nothing missing.", "", True)
    READY = ("ready", True, "The release is on the host and passed its smoke test.", "", True)
    WOULD_CHANGE = ("would change", True, "A dry run: a real run would change this host.", "", True)
    WOULD_HASH = ("would hash", True, "A dry run: a real run would hash this host's release.", "", True)
    WOULD_UNLOCK = ("would unlock", True, "A dry run: a real run would end this lease.")
    # bad
    UNFIT = ("unfit", False, "Preflight found something missing.", "Each reason names its fix.")
    HELD = ("held", False, "A host before this one failed, so this one was left alone.", "Fix that host, run again.")
    UNREACHABLE = ("unreachable", False, "There was no ssh connection.", "Look at the network, sshd and host keys.")
    UNREADABLE = ("unreadable", False, "The host could not be inspected.", "Run again with -v.")
    FAILED = ("failed", False, "A step failed. The service was not switched, or it regressed.", "Read the reason.")
    NOT_PROVEN = ("not proven", False, "The smoke test passed, but there are no goldens.", "Accept goldens.")
    UNSIGNED = ("unsigned", False, "The goldens are new and not signed.", "Sign them, commit, deploy again.")
    DAMAGED = ("damaged", False, "Some bytes are not as locked.", "Deploy again: it repairs them.")
    DRIFTED = ("drifted", False, "What runs is not what was confirmed.", "Deploy again, or see the reason.")
    WITHDRAWN = ("withdrawn", False, "The switch was undone. The old release serves.", "Read the reason first.")
    NOT_WITHDRAWN = ("not withdrawn", False, "The host should have gone back and did not.", "See tasks/status.py.")
    FROZEN = ("frozen", False, "Going back failed too. Nothing more is tried.", "Fix the service by hand.")
    UNKNOWN = ("unknown", False, "The host did not answer after its switch began.", "See tasks/status.py.")
    INCOMPLETE = ("incomplete", False, "The run ended before this host was finished.", "Run again: it goes on.")

    def __init__(self, label: str, good: bool, meaning: str, fix: str = "", on_the_way: bool = False):
        self.label, self.good, self.meaning, self.fix, self.on_the_way = label, good, meaning, fix, on_the_way

    @property
    def colour(self) -> str:
        """The colour of its row: rich's names."""
        return "yellow" if self is State.HELD else "green" if self.good else "red"


# What is shown beside a state where the host serves its release and takes no requests: its `readmit` failed.
NOT_READMITTED = "not readmitted"


def table() -> str:
    """The manual's table of states."""
    rows = ["| state | good | what it means | what to do |", "|---|---|---|---|"]
    for state in State:
        rows.append(f"| `{state.label}` | {'yes' if state.good else 'no'} | {state.meaning} | {state.fix or '–'} |")
    return "\n".join(rows)
