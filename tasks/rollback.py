"""Take every host back to its previous confirmed release: pyinfra -y INVENTORY tasks/rollback.py

--data release=ID     another release that is on the hosts (its id or the beginning of it)

Needs neither the bastion nor the Hub. First every host proves that its target is intact; then they switch as forward.
"""

from pyinfra import host

from tasks.control import assess, opening
from tasks.control.gates import gate
from tasks.control.host_run import Evidence
from tasks.control.inputs import read_rollback
from tasks.control.operations.leasing import lease
from tasks.control.operations.switching import check_target, one_target, recheck, roll_back

run = opening.open_run(read_rollback, opening.About.GPUS)
gpus = run.gpus

if host.name in gpus:
    assess.inspect(run.hosts[host.name])
    lease(name="Lease", run=run, release=run.settings.release or "previous", why="rollback")
    gate(name="Gate: the hosts are ours", run=run, before=gpus, after=gpus, evidence=Evidence.LEASED)
    check_target(name="Check: the target is intact", run=run)
    gate(name="Gate: intact everywhere", run=run, before=gpus, after=gpus, evidence=Evidence.INTACT)
    one_target(name="Check: one release for all", run=run)
    gate(name="Gate: the hosts agree", run=run, before=gpus, after=gpus, evidence=Evidence.AGREED)

for number, wave in host.loop(list(enumerate(run.waves, 1))):
    so_far, after = run.hosts_up_to(number), run.hosts_after(number)
    if host.name in wave:
        roll_back(name=f"Roll back: wave {number}", run=run)
    if host.name in so_far:
        recheck(name=f"Recheck: hosts up to wave {number}", run=run)
    if after and host.name in [*so_far, *after]:
        gate(
            name=f"Gate: wave {number} is confirmed",
            run=run,
            before=so_far,
            after=after,
            evidence=Evidence.CONFIRMED,
        )
