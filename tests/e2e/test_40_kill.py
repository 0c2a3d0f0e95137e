"""Eighteen rounds of the kill test; two on the service with torch are test_22_kill_torch.py's; 200 by `python3 -m tests.e2e.kill`."""

from __future__ import annotations

from tests.e2e import kill
from tests.e2e.conftest import hub
from tests.e2e.fleet import deploy
from tests.lab import lab


def test_an_activation_that_is_interrupted_anywhere_ends_old_or_new(capsys):
    lab.up(4)
    hub("reset", {})
    for version in ("v1", "v2"):
        if not all(service.other() for service in kill.LIGHT):
            deploy(version)
    with capsys.disabled():  # a round takes half a minute; whoever waits sees them pass
        tally = kill.rounds(dict.fromkeys(kill.LIGHT, 6))
    assert tally.total() == 18 and tally.hit_enough(), tally.text()
