"""What is lacking on any host, all at once, before a byte moves: pyinfra -y INVENTORY tasks/preflight.py"""

from pyinfra import host, state

from tasks.lib import fleet, locks, report, run
from tasks.lib.operations.checking import preflight

settings = run.open_run()
lock = run.refuse(locks.read_lock, settings, report.inventory()) if locks.lock_path(settings).exists() else None
report.install(state, run.roles(), lock.id if lock else None)
if host.name in [fleet.bastion().name, *run.in_service()]:
    preflight(name="Preflight", problems=run.look(lock))
