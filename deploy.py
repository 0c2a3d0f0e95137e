"""Bring every GPU host to the locked release, or leave it where it was.

    pyinfra -y inventories/prod.py deploy.py

preflight → lease → fetch → prove → stage (push, admit, smoke) → activate, wave by wave. The gates between the phases keep this
order, and stop the rollout where a phase fails.
"""

from pyinfra import host

from tasks.control import assess, opening
from tasks.control.gates import gate
from tasks.control.host_run import Evidence
from tasks.control.inputs import read_rollout
from tasks.control.operations.checking import preflight
from tasks.control.operations.fetching import fetch, prove
from tasks.control.operations.leasing import lease
from tasks.control.operations.staging import stage
from tasks.control.operations.switching import activate, recheck, withdraw

run = opening.open_run(read_rollout)
settings, bastion, gpus, everyone = run.settings, run.bastion.name, run.gpus, run.everyone

if host.name in everyone:
    me = run.hosts[host.name]
    preflight(name="Preflight", run=run, problems=assess.problems(run, me, run.release))
    assess.plan(run, me)
    gate(name="Gate: every host is fit", run=run, before=everyone, after=everyone, evidence=Evidence.FIT)

if host.name in gpus:
    lease(name="Lease", run=run, release=run.release.id, why="deploy", needed=run.changes_something)
if gpus and host.name in everyone:
    gate(name="Gate: the hosts are ours", run=run, before=gpus, after=everyone, evidence=Evidence.LEASED)

if host.name == bastion:
    fetch(name="Fetch", run=run)
    prove(name="Prove", run=run)
if bastion in everyone and host.name in everyone:
    gate(name="Gate: the release is proven", run=run, before=[bastion], after=everyone, evidence=Evidence.PROVEN)

if host.name in gpus:
    stage(name="Stage: push, admit, smoke", run=run)
    gate(
        name="Gate: staged everywhere",
        run=run,
        before=gpus,
        after=gpus,
        evidence=Evidence.STAGED,
        max_failed=settings.max_failed_hosts,
    )

for number, wave in host.loop(list(enumerate(run.waves, 1))):
    so_far, after = run.hosts_up_to(number), run.hosts_after(number)
    if host.name in wave:
        activate(name=f"Activate: wave {number}", run=run)
    if host.name in so_far:
        recheck(name=f"Recheck: hosts up to wave {number}", run=run)
    back = {"stop": [], "withdraw-wave": wave, "withdraw-all": so_far}[settings.on_failure]
    if back and host.name in so_far:
        withdraw(name=f"Withdraw: wave {number}, if it failed", run=run, hosts=back)
    if after and host.name in [bastion, *so_far, *after]:
        gate(
            name=f"Gate: wave {number} is confirmed",
            run=run,
            before=so_far,
            after=after,
            evidence=Evidence.CONFIRMED,
            max_failed=settings.max_failed_hosts,
        )
