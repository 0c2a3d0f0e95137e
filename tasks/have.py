"""What this side's bastion holds, for the next bundle: pyinfra -y INVENTORY tasks/have.py

Writes reports/have.json; on the connected side, `tasks/bundle.py --data have=PATH` then carries only what is missing.
Only the bastion counts, with every blob hashed now: a bundle must let *that bastion* push to any host, a new one too. A
blob that only some GPU host has could not be pushed from there, so it comes again.
"""

from pyinfra import host, state

from tasks.control import run
from tasks.control.operations.bundling import have
from tasks.control.reporting import recorder as report
from tasks.control.reporting import table

settings = run.open_run()
bastion = run.bastion_alone()
report.install(state, {bastion: "bastion"}, None, table.HAVE)

if host.name == bastion:
    run.look(None)
    have(name="Have", settings=settings)
