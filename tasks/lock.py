"""Resolve models and image to commits and digests, and write the lock: pyinfra -y INVENTORY tasks/lock.py

--dry                                    what moved upstream since the lock was made
--data update=true                       follow branches that moved
--data accept_goldens_from=gpu-01        this host's embeddings become the goldens (bastion without container engine)
"""

from pyinfra import host

from tasks.control import assess, opening
from tasks.control.git.lockfile import old_lock
from tasks.control.inputs import check_lock_command
from tasks.control.operations import locking
from tasks.control.operations.checking import preflight

run = opening.open_run(
    check_lock_command,
    lambda settings: opening.About.ALL if settings.accept_goldens_from else opening.About.BASTION,
)
accept_from = run.settings.accept_goldens_from

if accept_from and host.name == accept_from:
    assess.inspect(run.hosts[host.name])
    locking.accept_goldens(name=f"Accept the goldens of {host.name}", run=run)
elif not accept_from and host.name == run.bastion.name:
    preflight(name="Preflight", run=run, problems=assess.problems(run, run.bastion, None))
    locking.lock(name="Lock", run=run, old=opening.as_pyinfra_error(old_lock, run.settings))
