"""What is lacking on any host, all at once, before a byte moves: pyinfra -y INVENTORY tasks/preflight.py"""

from pyinfra import host, state

from tasks.control import lockfile as locks
from tasks.control import run
from tasks.control import ssh as fleet
from tasks.control.operations.checking import preflight
from tasks.control.reporting import recorder as report

settings = run.open_run()
lock = run.refuse(locks.read_lock, settings, report.inventory()) if locks.lock_path(settings).exists() else None
report.install(state, run.roles(), lock.id if lock else None)
if host.name in [fleet.bastion().name, *run.in_service()]:
    preflight(name="Preflight", problems=run.look(lock))
