"""Sixteen rounds of the kill test, each fault four times; 200 by `python3 -m tests.e2e.kill`."""

from __future__ import annotations

import time

from tests.e2e import kill
from tests.e2e.fleet import current, deploy
from tests.lab import lab


def test_an_activation_that_is_interrupted_anywhere_ends_old_or_new(capsys):
    lab.up(4)
    deploy("v1")
    old = current(kill.HOST)
    deploy("v2")
    seed = int(time.time())
    with capsys.disabled():  # a round takes half a minute; whoever waits sees them pass
        print(f"\nseed {seed}")
        tally = kill.rounds(16, seed, (old, current(kill.HOST)))
        print(tally.text())
    assert tally.hit_enough(), tally.text()
