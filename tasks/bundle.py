"""Write the locked release to a drive, where no wire crosses the gap: pyinfra -y INVENTORY tasks/bundle.py

--dry                     whether it fits, and what it would hold
--data have=PATH          the far side's have.json (tasks/have.py there): what it names stays at home
--data bundle=/media/stick

Fetches and proves what the bastion lacks, then writes to `bundle` there: blobs, lock, goldens, this tool and its wheels.
"""

from pyinfra import host, state
from pyinfra.api.exceptions import PyinfraError

from tasks.control import lockfile as locks
from tasks.control import preflight as fitness
from tasks.control import run
from tasks.control.operations import bundling
from tasks.control.operations.checking import preflight
from tasks.control.operations.fetching import fetch, prove
from tasks.control.reporting import recorder as report
from tasks.control.reporting import table
from tasks.shared.blobs import missing_blobs

settings = run.open_run()
if not settings.bundle:
    raise PyinfraError("tasks/bundle.py needs the drive's directory on the bastion. Next: --data bundle=/media/stick")
lock = run.refuse(locks.read_lock, settings, report.inventory())
run.refuse(locks.check_signed, settings, lock)
goldens = locks.Goldens(settings)
have, have_at = run.refuse(bundling.read_have, settings.have)
extra = run.refuse(bundling.extra, lock, goldens)
bastion = run.bastion_alone()
report.install(state, {bastion: "bastion"}, lock.id, table.BUNDLE)

if host.name == bastion:
    problems = run.look(lock)
    problems += fitness.unwritable(report.RESULTS[bastion]["seen"], settings, missing_blobs(lock.blobs(), have), extra)
    preflight(name="Preflight", problems=problems)
    fetch(name="Fetch", lock=lock, settings=settings)
    prove(name="Prove", lock=lock, settings=settings, goldens=goldens)
    bundling.bundle(name="Bundle", lock=lock, settings=settings, goldens=goldens, have=have, have_at=have_at)
