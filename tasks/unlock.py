"""End a rollout's lease whose holder cannot end it: pyinfra -y INVENTORY tasks/unlock.py --data lease=ID

A lease ends with its rollout, whatever becomes of it; this is for one that hangs. tasks/status.py shows the id.
"""

from pyinfra import host, state
from pyinfra.api.exceptions import PyinfraError

from tasks.lib import report, run, table
from tasks.lib.operations.leasing import unlock

settings = run.open_run(bastion=False)
if not settings.lease:
    raise PyinfraError("tasks/unlock.py needs the lease's id. Next: tasks/status.py shows it; then --data lease=ID")
report.install(state, run.gpus(), None, table.STATUS)

if host.name in run.in_service():
    run.look(None)
    unlock(name="Unlock", settings=settings)
