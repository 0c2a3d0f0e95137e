"""Write the locked release to a drive, where no wire crosses the gap: pyinfra -y INVENTORY tasks/bundle.py

--dry                     whether it fits, and what it would hold
--data contents=PATH      the far side's contents.json (tasks/contents.py there): what it names is not carried again
--data bundle=/media/stick

Fetches and proves what the bastion lacks, then writes to `bundle` there: blobs, lock, goldens, this tool and its wheels.
"""

from pyinfra import host

from tasks.control import assess, opening
from tasks.control.inputs import read_for_bundle
from tasks.control.operations.bundling import bundle, extra_files, read_contents
from tasks.control.operations.checking import preflight
from tasks.control.operations.fetching import fetch, prove
from tasks.control.reporting.table import BUNDLE
from tasks.control.rules.preflight import unwritable
from tasks.shared.blobs import missing_blobs

run = opening.open_run(read_for_bundle, opening.About.BASTION, BUNDLE)
contents, contents_at = opening.as_pyinfra_error(read_contents, run.settings.contents)

if host.name == run.bastion.name:
    carried, extra = (
        missing_blobs(run.release.blobs(), contents),
        opening.as_pyinfra_error(extra_files, run.release, run.goldens),
    )
    problems = assess.problems(run, run.bastion, run.release)
    problems += unwritable(run.bastion.facts, run.settings, carried, extra)
    preflight(name="Preflight", run=run, problems=problems)
    fetch(name="Fetch", run=run)
    prove(name="Prove", run=run)
    bundle(name="Bundle", run=run, contents=contents, contents_at=contents_at)
