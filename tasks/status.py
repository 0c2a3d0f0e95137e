"""What runs where, and whether it is what was confirmed. Changes nothing: pyinfra -y INVENTORY tasks/status.py

The same as JSON in reports/last.json. Exit code 1 on drift, and on a fleet that answers in two embedding spaces.
"""

from pyinfra import host

from tasks.control import assess, opening
from tasks.control.inputs import lock_to_compare, note_lock_in_git
from tasks.control.operations.checking import status
from tasks.control.reporting.table import STATUS

run = opening.open_run(note_lock_in_git, opening.About.GPUS, STATUS)

if host.name in run.gpus:
    assess.inspect(run.hosts[host.name])
    status(name="Status", run=run, lock=lock_to_compare(run))
