"""All tests, on a machine that has nothing but Python and git: python3 -m tests [fast | pytest arguments]

Installs what is missing, builds the lab's images once, then: ruff, types, unit, integration, and the lab end to end.
fast: ruff, types and unit tests alone. They need no root, no network and no engine, once the packages are in .venv.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from typing import IO

from tests.lab import images, lab, machine
from tests.lab.images import ROOT

# The second lab's: the rollouts of the light service, about half of the time. The first has torch, and the signatures.
SECOND = [f"tests/e2e/test_{name}.py" for name in ("30_rollouts", "32_commands", "35_ways", "40_kill")]


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what runs beside ends, too
    only_fast = sys.argv[1:] == ["fast"]
    if not only_fast:
        machine.install()
    python = machine.environment(ROOT / "requirements.txt", ROOT / "tests/requirements.txt")
    if code := fast(python) if only_fast else style(python):
        return code
    if only_fast:
        return 0
    pytest = [python, "-m", "pytest"]
    if sys.argv[1:]:
        return subprocess.run([*pytest, *sys.argv[1:]], cwd=ROOT).returncode
    lab.STATE.mkdir(exist_ok=True)  # some integration tests run the backend's image, and skip where it is not
    machine.engine(lab.STATE)
    images.all_images()
    if subprocess.run([*pytest, "-n", "auto", "tests/unit"], cwd=ROOT).returncode:
        return 1
    # A lab waits a good deal, so there are two; what needs none runs on what they leave of the cores, a file at a time.
    spread = ["-n", "auto", "--dist", "loadfile"]
    second = ["unshare", "--net", python, "-m", "tests.lab.beside", python, "-m", "pytest", *SECOND]
    first = [*pytest, "tests/e2e", *(f"--ignore={path}" for path in SECOND)]
    with beside(second, ["nice", "-n", "19", *pytest, *spread, "tests/integration"]) as others:
        codes = [subprocess.run(first, cwd=ROOT).returncode, *(process.wait() for process in others)]
    return max(codes, key=abs)


def style(python: str) -> int:
    """ruff and mypy; -> the first exit code that is not 0."""
    for words in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]):
        if code := subprocess.run([python, "-m", *words], cwd=ROOT).returncode:
            return code
    return 0


def fast(python: str) -> int:
    """Style and types, and the unit tests beside them; -> an exit code."""
    with subprocess.Popen([python, "-m", "pytest", "-q", "tests/unit"], cwd=ROOT) as units:
        return style(python) or units.wait()


@contextmanager
def beside(*commands: list[str]):
    """Commands that run meanwhile; what they said is printed at the end."""
    with ExitStack() as stack:
        running = []
        for words in commands:
            said = stack.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(words, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
            stack.callback(told, process, said)
            running.append(process)
        yield running


def told(process: subprocess.Popen, said: IO[bytes]) -> None:
    process.terminate()
    process.wait()
    said.seek(0)
    print(said.read().decode(errors="replace"), flush=True)


if __name__ == "__main__":
    sys.exit(main())
