"""What is lacking on any host, all at once, before a byte moves: pyinfra -y INVENTORY tasks/preflight.py"""

from pyinfra import state

from tasks.lib import locks, report, run
from tasks.lib.operations.checking import preflight

settings = run.open_run()
lock = run.refuse(locks.read_lock, settings, report.inventory()) if locks.lock_path(settings).exists() else None
report.install(state, run.roles(), lock.id if lock else None)
preflight(name="Preflight", problems=run.look(lock))
