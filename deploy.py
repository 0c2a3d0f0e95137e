"""Bring every GPU host to the locked release, or leave it exactly where it was.

    pyinfra -y inventories/prod.py deploy.py

lock → fetch → prove → stage (push, admit, smoke) → activate. Gates between the phases make it run as it reads, and stop it.
"""

from pyinfra import host, state

from tasks.control import run
from tasks.control import ssh as fleet
from tasks.control.lockfile import Goldens, check_signed, read_lock
from tasks.control.operations.checking import preflight
from tasks.control.operations.fetching import fetch, prove
from tasks.control.operations.leasing import lease
from tasks.control.operations.staging import stage
from tasks.control.operations.switching import activate, stay, withdraw
from tasks.control.reporting import recorder as report

settings = run.open_run()
lock = run.refuse(read_lock, settings, report.inventory())
run.refuse(check_signed, settings, lock)
goldens = Goldens(settings)
plan = run.plan(settings.waves)
report.install(state, run.roles(), lock.id, plan=lambda: plan, costs=lock.costs())

bastion = fleet.bastion().name
gpus = run.in_service()
everyone = [name for name in run.roles() if name == bastion or name in gpus]
on_bastion, failures = host.name == bastion, settings.max_failed_hosts

if host.name in everyone:
    preflight(name="Preflight", problems=run.look(lock, plan))
    fleet.gate(name="Gate: every host is fit", before=everyone, after=everyone, key="fit")

if host.name in gpus:
    lease(name="Lease", settings=settings, release=lock.id, why="deploy", needed=lambda: run.changes(lock, goldens))
if gpus and host.name in everyone:
    fleet.gate(name="Gate: the hosts are ours", before=gpus, after=everyone, key="leased")

if on_bastion:
    fetch(name="Fetch", lock=lock, settings=settings)
    prove(name="Prove", lock=lock, settings=settings, goldens=goldens)
if bastion in everyone and host.name in everyone:
    fleet.gate(name="Gate: the release is proven", before=[bastion], after=everyone, key="proven")

if host.name in gpus:
    stage(name="Stage: push, admit, smoke", lock=lock, settings=settings, goldens=goldens)
    fleet.gate(name="Gate: staged everywhere", before=gpus, after=gpus, key="staged", max_failed=failures)

for number, wave in host.loop(list(enumerate(plan, 1))):
    so_far = [name for earlier in plan[:number] for name in earlier]
    after = [name for later in plan[number:] for name in later]
    if host.name in wave:
        activate(name=f"Activate: wave {number}", lock=lock, settings=settings)
    if host.name in so_far:
        stay(name=f"Stay: what serves after wave {number}", settings=settings)
    back = {"stop": [], "withdraw-wave": wave, "withdraw-all": so_far}[settings.on_failure]
    if back and host.name in so_far:
        withdraw(name=f"Withdraw: wave {number}, if it failed", settings=settings, hosts=back)
    if after and host.name in [bastion, *so_far, *after]:
        fleet.gate(
            name=f"Gate: wave {number} is confirmed", before=so_far, after=after, key="confirmed", max_failed=failures
        )
