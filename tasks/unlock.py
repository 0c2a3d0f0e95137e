"""End a rollout's lease whose holder cannot end it: pyinfra -y INVENTORY tasks/unlock.py --data lease=ID

A lease ends with its rollout, whatever becomes of it; this is for one that hangs. tasks/status.py shows the id.
"""

from pyinfra import host, state
from pyinfra.api.exceptions import PyinfraError

from tasks.control import run
from tasks.control.operations.leasing import unlock
from tasks.control.reporting import recorder as report
from tasks.control.reporting import table

settings = run.open_run(bastion=False)
if not settings.lease:
    raise PyinfraError("tasks/unlock.py needs the lease's id. Next: tasks/status.py shows it; then --data lease=ID")
report.install(state, run.gpus(), None, table.STATUS)

if host.name in run.in_service():
    run.look(None)
    unlock(name="Unlock", settings=settings)
