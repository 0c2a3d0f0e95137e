"""What a command reads before any host is touched: the lock in git, its signatures, and the waves of a rollout."""

from __future__ import annotations

from pyinfra.api.exceptions import PyinfraError

from tasks.control.git.lockfile import lock_in_git, lock_path, read_lock
from tasks.control.git.signatures import check_signatures
from tasks.control.run import Run
from tasks.shared.lock import Lock


def read_release(run: Run) -> None:
    """The lock, held against the settings, its signatures checked. Raises Refused."""
    run.lock = read_lock(run.settings, run.command_line.inventory)
    check_signatures(run.settings, run.lock)


def read_rollout(run: Run) -> None:
    """The release, and the waves of a deploy. Raises Refused."""
    read_release(run)
    run.is_rollout, run.waves = True, run.plan_waves(run.settings.waves)


def read_rollback(run: Run) -> None:
    """The waves of a rollback. It needs no lock: the hosts have their own."""
    run.is_rollout, run.waves = True, run.plan_waves(run.settings.rollback_waves, own=False)


def read_lock_if_there(run: Run) -> None:
    """The lock where there is one. Raises Refused where it is not one for these settings."""
    if lock_path(run.settings).exists():
        run.lock = read_lock(run.settings, run.command_line.inventory)


def lock_to_compare(run: Run) -> Lock | None:
    """The lock in git, whatever it was made for, to hold the hosts against; None without one that can be read."""
    return lock_in_git(run.settings)


def note_lock_in_git(run: Run) -> None:
    """For tasks/status.py: the release that the report holds the hosts against."""
    lock = lock_to_compare(run)
    run.lock_in_git = lock.id if lock else None


def need_lease_id(run: Run) -> None:
    """For tasks/unlock.py. Raises PyinfraError without the lease's id."""
    if not run.settings.lease:
        raise PyinfraError("tasks/unlock.py needs the lease's id. Next: tasks/status.py shows it; then --data lease=ID")


def read_for_prune(run: Run) -> None:
    """The lock in git, whose blobs stay. Raises PyinfraError where --limit leaves out hosts that a rollout may hold."""
    read_lock_if_there(run)
    run.kept_lock, run.lock = run.lock, None
    if run.bastion.in_limit and not run.whole_fleet:
        what = "what a rollout pushes stays on the bastion, and --limit leaves out hosts that one may hold"
        raise PyinfraError(f"{what}. Next: no --limit, or --exclude {run.bastion.name}")


def read_for_bundle(run: Run) -> None:
    """The release that goes on the drive. Raises PyinfraError without the drive's directory."""
    if not run.settings.bundle:
        where = "tasks/bundle.py needs the drive's directory on the bastion"
        raise PyinfraError(f"{where}. Next: --data bundle=/media/stick")
    read_release(run)


def check_lock_command(run: Run) -> None:
    """For tasks/lock.py. Raises PyinfraError where there is no Hub, or no host to accept goldens from."""
    settings = run.settings
    accept = settings.accept_goldens_from
    if settings.source == "bundle" and not accept:
        raise PyinfraError(f"no Hub here: the lock is the bundle's. Next: cp lock.json {lock_path(settings)}")
    if accept and accept not in run.gpus:
        there = ", ".join(run.gpus)
        raise PyinfraError(f"accept_goldens_from={accept}: no host of this run; expected one of {there}")
    if accept:
        run.reported = [accept]
