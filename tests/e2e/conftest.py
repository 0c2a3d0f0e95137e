"""The lab, and the commands as an operator types them. Tests in this folder run in the order of their names."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import lab

ROOT = Path(__file__).parents[2]
PYINFRA = str(Path(sys.executable).with_name("pyinfra"))
LOCK = ROOT / "group_data/locks/lab.json"
BASTION, GPU1, GPU2 = "lab-bastion", "lab-gpu1", "lab-gpu2"
MIXED = ("--data", "embedding_space_change=mixed-accepted")
ONE = ("--limit", BASTION, "--limit", GPU1)
STORES = {BASTION: "/srv/models", GPU1: "/srv/models", GPU2: "/data/models"}


def pytest_collection_modifyitems(items):
    for item in items:
        if "e2e" in str(item.fspath):
            item.add_marker(pytest.mark.e2e)


@dataclass
class Run:
    code: int
    said: str
    report: dict

    def host(self, name: str) -> dict:
        return self.report["hosts"][name]


def command(*words: str, inventory: str = "inventories/lab.py") -> list[str]:
    return [PYINFRA, "-y", inventory, *words]


def pyinfra(*words: str, timeout: int = 600, inventory: str = "inventories/lab.py", **environment: str) -> Run:
    """`pyinfra -y inventories/lab.py …` in the repository; its exit code, all it said, and the report that it named."""
    done = subprocess.run(
        command(*words, inventory=inventory),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
    )
    said = done.stdout + done.stderr
    named = re.findall(r"\b(reports/\S+)\.(?:json|html)", said)
    return Run(done.returncode, said, json.loads((ROOT / f"{named[-1]}.json").read_text()) if named else {})


def on(name: str, script: str) -> str:
    """Read back, or break something, as root on a lab machine: by docker exec, never through the code under test."""
    return lab.inside(name, script)


def hub(path: str, document: object) -> None:
    """The stand-in Hub's control: faults, refs."""
    data = json.dumps(document)
    lab.run("docker", "exec", BASTION, "curl", "-fsS", "-X", "POST", "-d", data, f"https://lab-hub/_lab/{path}")


def commits() -> dict[str, str]:
    """{ref: commit} of the served model on the Hub."""
    return json.loads(lab.run("docker", "exec", "lab-hub", "cat", "/lab/data/docai/colpali-tiny/refs.json"))


def embedding(name: str) -> list[list[float]]:
    """What the service on a host answers to one query, asked on the host itself."""
    ask = 'curl -fsS -d \'{"query": "invoice number and date"}\' http://127.0.0.1:8000/embed'
    return json.loads(on(name, ask))["embedding"]


@pytest.fixture(scope="session")
def machines():
    """A fresh lab: GPU hosts that have nothing, a Hub whose branch is at version 1."""
    lab.down()
    lab.up()
    hub("reset", {})
    hub("refs", {"docai/colpali-tiny": {"main": commits()["v1"]}})
    on(BASTION, "rm -rf /srv/models")
    for path in (LOCK, LOCK.with_name("lab.goldens.json")):
        path.unlink(missing_ok=True)
    return STORES


# The fleet's: here as two files of tests share them, and imported where they run as its helpers import this file.


@pytest.fixture(scope="session")
def first():
    """Four hosts that had nothing, and two versions proven."""
    from tests.e2e import fleet

    fleet.begin()


@pytest.fixture
def settled(first):
    """Every host in order on one release, whatever a test left."""
    from tests.e2e import fleet

    return fleet.settle()
