"""Twenty rounds of the kill test, two of them on the service with torch; 200 by `python3 -m tests.e2e.kill`."""

from __future__ import annotations

import time

from tests.e2e import kill
from tests.e2e.conftest import BASTION, GPU1, MIXED, commits, hub, pyinfra
from tests.e2e.fleet import deploy
from tests.lab import lab


def both(service: kill.Service, deployed) -> None:
    """Two releases on the service's host, whatever ran before."""
    for version in ("v1", "v2"):
        if not service.other():
            deployed(version)


def torch(version: str) -> None:
    hub("refs", {"docai/colpali-tiny": {"main": commits()[version]}})
    for words in (
        ("tasks/lock.py", "--data", "update=true"),
        ("deploy.py", *MIXED, "--limit", BASTION, "--limit", GPU1),
    ):
        run = pyinfra(*words)
        assert run.code == 0, run.said[-3000:]


def test_an_activation_that_is_interrupted_anywhere_ends_old_or_new(capsys):
    lab.up(4)
    hub("reset", {})
    light = kill.LIGHT[1:]
    for service in light:
        both(service, deploy)
    both(kill.TORCH, torch)
    seed = int(time.time())
    with capsys.disabled():  # a round takes half a minute; whoever waits sees them pass
        print(f"\nseed {seed}")
        tally = kill.rounds({**dict.fromkeys(light, 9), kill.TORCH: 2}, seed)
        print(tally.text())
    assert tally.total() == 20 and tally.hit_enough(), tally.text()
