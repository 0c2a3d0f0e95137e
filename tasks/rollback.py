"""Take every host back to its previous confirmed release: pyinfra -y INVENTORY tasks/rollback.py

--data release=ID     another release that is on the hosts (its id or the beginning of it)

Needs neither the bastion nor the Hub. First every host proves that its target is intact; then they switch as forward.
"""

from pyinfra import host, state

from tasks.control import run
from tasks.control import ssh as fleet
from tasks.control.operations.leasing import lease
from tasks.control.operations.switching import check_target, one_target, roll_back, stay
from tasks.control.reporting import recorder as report

settings = run.open_run(bastion=False)
plan = run.plan(settings.rollback_waves, own=False)
gpus = run.in_service()
report.install(state, run.gpus(), None, plan=lambda: plan)

if host.name in gpus:
    run.look(None)
    lease(name="Lease", settings=settings, release=settings.release or "previous", why="rollback")
    fleet.gate(name="Gate: the hosts are ours", before=gpus, after=gpus, key="leased")
    check_target(name="Check: the target is intact", settings=settings)
    fleet.gate(name="Gate: intact everywhere", before=gpus, after=gpus, key="intact")
    one_target(name="Check: one release for all", hosts=gpus)
    fleet.gate(name="Gate: the hosts agree", before=gpus, after=gpus, key="agreed")

for number, wave in host.loop(list(enumerate(plan, 1))):
    so_far = [name for earlier in plan[:number] for name in earlier]
    after = [name for later in plan[number:] for name in later]
    if host.name in wave:
        roll_back(name=f"Roll back: wave {number}", settings=settings)
    if host.name in so_far:
        stay(name=f"Stay: what serves after wave {number}", settings=settings)
    if after and host.name in [*so_far, *after]:
        fleet.gate(name=f"Gate: wave {number} is confirmed", before=so_far, after=after, key="confirmed")
