"""Bring every GPU host to the locked release, or leave it exactly where it was.

    pyinfra -y inventories/prod.py deploy.py

lock → fetch → prove → stage (push, admit, smoke) → activate. Gates between the phases make it run as it reads, and stop it.
"""

from pyinfra import host, state

from tasks.lib import fleet, operations, release, report, run
from tasks.lib.locks import Goldens, read_lock

settings = run.open_run()
lock = run.refuse(read_lock, settings, run.inventory_name())
goldens = Goldens(settings)
report.install(state, run.roles(), lock.id)

bastion = fleet.bastion().name
gpus = [target.name for target in fleet.targets()]
everyone = list(run.roles())
on_bastion = host.name == bastion

operations.preflight(name="Preflight", problems=run.look(lock))
fleet.gate(name="Gate: every host is fit", before=everyone, after=everyone, key="fit")

if on_bastion:
    operations.fetch(name="Fetch", lock=lock, settings=settings)
    operations.prove(name="Prove", lock=lock, settings=settings, goldens=goldens)
if bastion in everyone:
    fleet.gate(name="Gate: the release is proven", before=[bastion], after=everyone, key="proven")

if not on_bastion:
    operations.stage(name="Stage: push, admit, smoke", lock=lock, settings=settings, goldens=goldens)
if gpus:
    fleet.gate(
        name="Gate: staged everywhere", before=gpus, after=gpus, key="staged", max_failed=settings.max_failed_hosts
    )

plan = release.waves(gpus, settings.waves)
for number, wave in host.loop(list(enumerate(plan, 1))):
    if host.name in wave:
        operations.activate(name=f"Activate: wave {number}", lock=lock, settings=settings)
    after = [name for later in plan[number:] for name in later]
    if after and host.name in [bastion, *wave, *after]:
        fleet.gate(
            name=f"Gate: wave {number} is confirmed",
            before=wave,
            after=after,
            key="confirmed",
            max_failed=settings.max_failed_hosts,
        )
