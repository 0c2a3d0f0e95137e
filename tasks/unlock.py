"""End a rollout's lease whose holder cannot end it: pyinfra -y INVENTORY tasks/unlock.py --data lease=ID

A lease ends with its rollout, whatever becomes of it. This is for one that hangs. tasks/status.py shows the id.
"""

from pyinfra import host

from tasks.control import assess, opening
from tasks.control.inputs import need_lease_id
from tasks.control.operations.leasing import unlock
from tasks.control.reporting.table import STATUS

run = opening.open_run(need_lease_id, opening.About.GPUS, STATUS)

if host.name in run.gpus:
    assess.inspect(run.hosts[host.name])
    unlock(name="Unlock", run=run)
