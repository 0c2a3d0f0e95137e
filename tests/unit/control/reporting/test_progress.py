"""How far the pushes are: one poller for the whole fleet, and plain lines where there is no terminal."""

from __future__ import annotations

import io

import gevent
import pytest
from rich.console import Console

from tasks.control.reporting import progress
from tasks.control.reporting.progress import Pushes

RUNNING = {"gpu1": {"done": 500, "total": 1000, "seconds": 5}, "gpu2": {"done": 1, "total": 10**6, "seconds": 0}}


@pytest.fixture
def pushes(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    asked = []

    def ask():
        asked.append(1)
        return RUNNING

    shown = Pushes(ask)
    shown.asked, shown.out = asked, io.StringIO()
    shown.console = Console(file=shown.out, width=200)
    return shown


def test_a_line_has_bytes_rate_and_time_left_and_guesses_nothing_at_the_start(pushes):
    pushes.lines(RUNNING)
    assert pushes.out.getvalue() == (
        "    [gpu1] push: 500 B of 1.0 kB, 100 B/s, 5 s left\n"
        "    [gpu2] push: 1 B of 1.0 MB, 0 B/s, time left unknown\n"
    )
    pushes.lines(RUNNING)
    assert pushes.out.getvalue().count("gpu1") == 1, "not again at once"


def test_one_poller_asks_while_anybody_pushes(pushes):
    with pushes:
        first = pushes.poller
        with pushes:
            assert pushes.poller is first
            gevent.sleep(0.01)
        assert pushes.poller is first and pushes.asked
    assert pushes.poller is None
    count = len(pushes.asked)
    gevent.sleep(0.01)
    assert len(pushes.asked) == count and "[gpu1] push" in pushes.out.getvalue()


def test_a_terminal_gets_bars(pushes):
    pushes.console = Console(file=pushes.out, force_terminal=True, width=120)
    with pushes:
        gevent.sleep(0.05)
    assert set(pushes.tasks) == {"gpu1", "gpu2"} and "0.5/1.0 kB" in pushes.out.getvalue()
