"""Hash the current release of each host again: pyinfra -y INVENTORY tasks/verify.py

--data sample=10      percent of the bytes, as a random sample of blobs; all of them by default
"""

from pyinfra import host

from tasks.control import assess, opening
from tasks.control.operations.checking import verify
from tasks.control.reporting.table import VERIFY

run = opening.open_run(about=opening.About.GPUS, columns=VERIFY)

if host.name in run.gpus:
    assess.inspect(run.hosts[host.name])
    verify(name="Verify", run=run)
