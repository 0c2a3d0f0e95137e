"""What this side's bastion holds, for the next bundle: pyinfra -y INVENTORY tasks/contents.py

Writes reports/contents.json. On the connected side, `tasks/bundle.py --data contents=PATH` then carries only what is missing.
Only the bastion counts, with every blob hashed now: a bundle must let *that bastion* push to any host, a new one too. A blob
that only some GPU host has could not be pushed from there, so it comes again.
"""

from pyinfra import host

from tasks.control import assess, opening
from tasks.control.operations.bundling import list_contents
from tasks.control.reporting.table import CONTENTS

run = opening.open_run(about=opening.About.BASTION, columns=CONTENTS)

if host.name == run.bastion.name:
    assess.inspect(run.bastion)
    list_contents(name="Contents", run=run)
