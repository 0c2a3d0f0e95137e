"""Delete what nothing uses, on the bastion and the hosts: pyinfra -y INVENTORY tasks/prune.py

--dry                 what would go, in bytes by release
--data keep_releases=2
"""

from pyinfra import host

from tasks.control import assess, opening
from tasks.control.gates import gate
from tasks.control.host_run import Evidence
from tasks.control.inputs import read_for_prune
from tasks.control.operations.keeping import prune
from tasks.control.operations.leasing import lease
from tasks.control.reporting.table import PRUNE

run = opening.open_run(read_for_prune, columns=PRUNE)

if host.name in run.everyone:
    assess.inspect(run.hosts[host.name])
    if host.name in run.gpus:
        lease(name="Lease", run=run, release="none", why="prune")
    if run.gpus:  # what a rollout pushes stays on the bastion
        gate(
            name="Gate: the hosts are ours",
            run=run,
            before=run.gpus,
            after=[run.bastion.name],
            evidence=Evidence.LEASED,
        )
    prune(name="Prune", run=run)
