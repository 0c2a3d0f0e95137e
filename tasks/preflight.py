"""What is missing on any host, all at once, before a byte moves: pyinfra -y INVENTORY tasks/preflight.py"""

from pyinfra import host

from tasks.control import assess, opening
from tasks.control.inputs import read_lock_if_there
from tasks.control.operations.checking import preflight

run = opening.open_run(read_lock_if_there)

if host.name in run.everyone:
    preflight(name="Preflight", run=run, problems=assess.problems(run, run.hosts[host.name], run.lock))
