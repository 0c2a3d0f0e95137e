"""pyinfra as it is typed, with no host to be reached."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
PYINFRA = Path(sys.executable).with_name("pyinfra")


def said(*words: str) -> tuple[int, str]:
    done = subprocess.run([PYINFRA, *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("task", ["deploy.py", "tasks/status.py"])
def test_a_limit_that_matches_no_host_is_no_success(task):
    code, text = said("-y", "inventories/prod.py", task, "--limit", "gpu-99")
    assert code == 1 and f"{task}: was not run for any host" in text


def test_what_is_not_ours_is_left_alone():
    assert said("inventories/prod.py", "debug-inventory")[0] == 0
