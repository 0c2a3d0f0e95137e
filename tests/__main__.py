"""All tests, on a machine that has nothing but Python and git: python3 -m tests [pytest arguments]

Installs what is missing, builds the lab's images once, then: ruff, types, unit, integration, and the lab end to end.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

from tests.lab import images, lab, machine
from tests.lab.images import ROOT


def main() -> int:
    machine.install()
    python = machine.environment(ROOT / "requirements.txt", ROOT / "tests/requirements.txt")
    for words in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]):
        if subprocess.run([python, "-m", *words], cwd=ROOT).returncode:
            return 1
    pytest = [python, "-m", "pytest"]
    if sys.argv[1:]:
        return subprocess.run([*pytest, *sys.argv[1:]], cwd=ROOT).returncode
    lab.STATE.mkdir(exist_ok=True)  # some integration tests run the backend's image, and skip where it is not
    machine.engine(lab.STATE)
    images.all_images()
    if subprocess.run([*pytest, "-n", "auto", "tests/unit"], cwd=ROOT).returncode:
        return 1
    # The lab is one, and waits a good deal; what needs none runs beside it on what it leaves of the cores, a file at a time.
    spread = ["-n", "auto", "--dist", "loadfile"]
    with tempfile.TemporaryFile() as said:
        beside = subprocess.Popen(
            ["nice", "-n", "19", *pytest, *spread, "tests/integration"], cwd=ROOT, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            lab_code = subprocess.run([*pytest, "tests/e2e"], cwd=ROOT).returncode
            beside.wait()
        finally:
            beside.terminate()
        said.seek(0)
        print(said.read().decode(errors="replace"), flush=True)
    return lab_code or beside.returncode


if __name__ == "__main__":
    sys.exit(main())
