"""The lease's holder on a host: what it answers over a shell that talks, and whether it still runs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pyinfra.api import StringCommand
from pyinfra.context import ctx_state

from tasks.control import leases
from tasks.control.leases import Leases
from tasks.shared.errors import Refused
from tests.unit.control.harness import FakeHost, used

HOLD = StringCommand("python3", "/srv/models/tool/tool-0123456789ab.pyz", "lease", "hold", "--id", "x1")


@pytest.fixture
def take():
    """take(says, …): the answer of a host whose shell says this."""

    def ask(says, kept=None, **data):
        target = FakeHost("gpu1", {("lease", "hold"): says}, **data)
        with used(ctx_state, SimpleNamespace()):
            return (kept or Leases()).take(target, HOLD)

    return ask


@pytest.mark.parametrize("talk", ["", "welcome\n", '{"motd": "welcome"}\n', '{"\n'])
def test_a_lease_is_read_from_what_a_shell_says(take, talk):
    assert take(talk + '{"current": null, "ok": true}\nmore\n') == '{"current": null, "ok": true}\n'


def test_a_shell_without_an_answer_is_told_in_its_words(take):
    assert take("maintenance until Monday\n") == "maintenance until Monday complaint"


def test_a_connection_that_breaks_is_a_refusal_of_that_host(take):
    def broken(call):
        raise EOFError("gone")

    with pytest.raises(Refused, match="gpu1: gives no lease, found EOFError: gone"):
        take(broken)


def test_the_holder_runs_as_root_as_operations_do():
    heard = []
    target = FakeHost("gpu1", _sudo=True)
    target.connector.client.exec_command = lambda words: heard.append(words) or (_ for _ in ()).throw(OSError("stop"))
    with used(ctx_state, SimpleNamespace()), pytest.raises(Refused):
        Leases().take(target, HOLD)
    assert heard[0].startswith("sudo -H -n sh -c")


def test_a_lease_is_held_while_its_process_runs_and_its_channel_is_open(take):
    ours = Leases()
    assert not ours.is_held("gpu1")
    take('{"ok": true}\n', ours)
    assert ours.is_held("gpu1") and not ours.is_held("gpu2")
    channel = ours.channels["gpu1"][1].channel
    channel.closed = True
    assert not ours.is_held("gpu1")
    channel.closed, channel.exit_status_ready = False, lambda: True
    assert not ours.is_held("gpu1")


def test_a_holder_that_hears_us_no_longer_ends_the_talking(monkeypatch):
    class Gone:
        def __init__(self):
            self.heard = 0

        def write(self, words):
            self.heard += 1
            if self.heard == 3:
                raise OSError("broken pipe")

        def flush(self):
            pass

    stdin = Gone()
    monkeypatch.setattr(leases, "SPEAK", 0.0)
    leases.Leases().speak(stdin)
    assert stdin.heard == 3
