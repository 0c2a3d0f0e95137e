"""The lab, up: `python3 -m tests.lab up` first. These tests never start or stop it, so a failure leaves it to be looked at."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GPU_HOSTS = ("lab-gpu1", "lab-gpu2")
MACHINES = ("lab-hub", "lab-bastion", *GPU_HOSTS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below this folder needs the lab."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


def inside(machine: str, *command: str, seconds: int = 20) -> subprocess.CompletedProcess[str]:
    """A command in a lab machine as root, past ssh and deploy: what the tests look with. The exit code is for the caller."""
    return subprocess.run(["docker", "exec", machine, *command], capture_output=True, text=True, timeout=seconds)


@pytest.fixture(scope="session", autouse=True)
def lab_is_up() -> None:
    """One clear failure instead of many puzzling ones."""
    listed = subprocess.run(["docker", "ps", "--format", "{{.Names}}"], capture_output=True, text=True)
    lacking = [name for name in MACHINES if name not in listed.stdout.split()]
    if listed.returncode or lacking:
        pytest.exit(f"the lab is not up: {', '.join(lacking)} missing. Run: python3 -m tests.lab up", returncode=1)
