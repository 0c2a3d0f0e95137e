"""Resolve models and image to commits and digests, and write the lock: pyinfra -y INVENTORY tasks/lock.py

--dry                                    what moved upstream since the lock was made
--data update=true                       follow branches that moved
--data accept_goldens_from=gpu-01        this host's embeddings become the goldens (bastion without container engine)
"""

from pyinfra import host, state
from pyinfra.api.exceptions import PyinfraError

from tasks.control import lockfile as locks
from tasks.control import run
from tasks.control.operations import checking, locking
from tasks.control.reporting import recorder as report

settings = run.open_run()
if settings.source == "bundle" and not settings.accept_goldens_from:
    raise PyinfraError(f"no Hub here: the lock is the bundle's. Next: cp lock.json {locks.lock_path(settings)}")
if settings.accept_goldens_from and settings.accept_goldens_from not in run.in_service():
    there = ", ".join(run.in_service())
    raise PyinfraError(
        f"accept_goldens_from={settings.accept_goldens_from}: no host of this run; expected one of {there}"
    )
one = settings.accept_goldens_from or run.bastion_alone()
report.install(state, {one: "gpu" if settings.accept_goldens_from else "bastion"}, None)

if host.name == settings.accept_goldens_from:
    run.look(None)
    locking.accept_goldens(name=f"Accept the goldens of {host.name}", settings=settings)
elif host.name == one:
    checking.preflight(name="Preflight", problems=run.look(None))
    locking.lock(name="Lock", settings=settings, old=run.refuse(locks.old_lock, settings))
