"""Delete what nothing uses, on the bastion and the hosts: pyinfra -y INVENTORY tasks/prune.py

--dry                 what would go, in bytes by release
--data keep_releases=2
"""

from pyinfra import host, state
from pyinfra.api.exceptions import PyinfraError

from tasks.control import lockfile as locks
from tasks.control import run
from tasks.control import ssh as fleet
from tasks.control.operations import leasing
from tasks.control.operations.keeping import prune
from tasks.control.reporting import recorder as report
from tasks.control.reporting import table

settings = run.open_run()
lock = run.refuse(locks.read_lock, settings, report.inventory()) if locks.lock_path(settings).exists() else None
report.install(state, run.roles(), None, table.PRUNE)

bastion, gpus = fleet.bastion().name, run.in_service()
if bastion in run.roles() and not run.whole_fleet():
    what = "what a rollout pushes stays on the bastion, and --limit leaves out hosts that one may hold"
    raise PyinfraError(f"{what}. Next: no --limit, or --exclude {bastion}")
if host.name in [bastion, *gpus]:
    run.look(None)
    if host.name in gpus:
        leasing.lease(name="Lease", settings=settings, release="none", why="prune")
    if gpus:  # what a rollout pushes stays on the bastion
        fleet.gate(name="Gate: the hosts are ours", before=gpus, after=[bastion], key="leased")
    prune(name="Prune", settings=settings, lock=lock)
