"""What runs where, and whether it is what was confirmed; changes nothing: pyinfra -y INVENTORY tasks/status.py

The same as JSON in reports/last.json. Exit code 1 on drift, and on a fleet that answers in two embedding spaces.
"""

from pyinfra import host, state

from tasks.control import lockfile as locks
from tasks.control import run
from tasks.control.operations.checking import status
from tasks.control.reporting import recorder as report
from tasks.control.reporting import table

settings = run.open_run(bastion=False)
lock = locks.locked(settings)
report.install(state, run.gpus(), None, table.STATUS, locked=lock.id if lock else None)

if host.name in run.in_service():
    run.look(None)
    status(name="Status", settings=settings, lock=lock)
