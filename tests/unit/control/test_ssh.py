"""What comes back over a connection that talks, or that gives no session."""

from __future__ import annotations

import contextlib
import io
from types import SimpleNamespace

import pytest
from paramiko import ChannelException
from pyinfra.api import StringCommand
from pyinfra.api.exceptions import ConnectError

from tasks.control import ssh as fleet
from tasks.remote.common import files
from tasks.shared.answers import last_json_object


@pytest.fixture
def target(monkeypatch):
    """A host that is connected; `says` is what it answers to whatever is asked."""
    monkeypatch.setattr(fleet, "revive", lambda target: None)
    monkeypatch.setattr(fleet, "state", SimpleNamespace(print_output=False, print_input=False))
    monkeypatch.setattr(fleet, "make_unix_command_for_host", lambda state, target, command: command)
    monkeypatch.setattr(fleet.gevent, "spawn", lambda *words: None)

    def answers(words):
        said = io.StringIO(here.says)
        said.channel = SimpleNamespace(settimeout=lambda seconds: None)
        return io.BytesIO(), said, io.BytesIO(b"complaint")

    client = SimpleNamespace(exec_command=answers)
    here = SimpleNamespace(name="gpu1", says="", data={}, connector=SimpleNamespace(client=client))
    return here


def test_a_connection_that_gives_no_session_says_what_to_mend(target):
    def refused(*words, **more):
        raise ChannelException(2, "Connect failed")

    target.run_shell_command = refused
    ok, output = fleet.run(target, StringCommand("true"), None, 5)
    assert not ok and output.stderr_lines[0].endswith("Next: MaxSessions in its sshd_config")


@pytest.mark.parametrize("talk", ["", "welcome\n", '{"motd": "welcome"}\n', '{"\n'])
def test_a_lease_is_read_from_what_a_shell_says(target, talk):
    target.says = talk + '{"current": null, "ok": true}\nmore\n'
    assert fleet.Leases().take(target, StringCommand("x")) == '{"current": null, "ok": true}\n'


def test_a_shell_without_an_answer_is_told_in_its_words(target):
    target.says = "maintenance until Monday\n"
    assert fleet.Leases().take(target, StringCommand("x")) == "maintenance until Monday complaint"


@pytest.mark.parametrize(
    ("confirmed", "max_failed", "goes"),
    [("ab", 0, True), ("a", 0, False), ("a", 1, True), ("", 1, False), ("", 2, False), ("", 9, False)],
)
def test_a_gate_opens_for_as_many_failures_as_may_be_and_never_where_all_failed(
    monkeypatch, confirmed, max_failed, goes
):
    said = []
    here = SimpleNamespace(name="c", noop=said.append)
    monkeypatch.setattr(fleet, "host", here)
    monkeypatch.setattr(fleet, "state", SimpleNamespace(is_executing=True, failed_hosts=[]))
    monkeypatch.setattr(fleet, "targets", lambda: [here])
    monkeypatch.setattr(fleet.report, "RESULTS", {name: {"confirmed": name in confirmed} for name in "abc"})
    held = list(fleet.gate._inner(before=["a", "b"], after=["c"], key="confirmed", max_failed=max_failed))
    assert (said == [f"{len(confirmed)} of 2 confirmed"]) is goes and bool(held) is not goes


def test_an_answer_begins_on_a_line_of_its_own():
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print("maintenance until Monday", end="")
        files.print_answer(lambda: {"current": 1}, "/x")
    assert last_json_object(out.getvalue().splitlines(), "ok") == {"ok": True, "current": 1}


def test_a_session_that_a_stuck_host_never_gives_is_not_waited_for_an_hour(target):
    transport = SimpleNamespace(is_active=lambda: True, set_keepalive=lambda seconds: None, sock=None)
    target.connector.client.get_transport = lambda: transport
    fleet.tune(target)
    assert transport.channel_timeout == fleet.UNANSWERED


def test_a_file_that_cannot_be_sent_is_a_failure_of_that_host_alone(target):
    waited = []
    channel = SimpleNamespace(settimeout=waited.append)
    target.connector.get_file_transfer_connection = lambda: SimpleNamespace(get_channel=lambda: channel)
    target.connector.put_file = lambda data, path, **more: True
    assert fleet.send(target, b"x", "/x") and waited == [fleet.UNANSWERED]
    for error in (ConnectError("Unable to establish SFTP connection"), TimeoutError(), EOFError()):

        def refused(error=error):
            raise error

        target.connector.get_file_transfer_connection = refused
        assert not fleet.send(target, b"x", "/x")


def test_who_fell_counts_as_failed_whatever_becomes_of_it(monkeypatch):
    hosts = [SimpleNamespace(name=name) for name in "abc"]
    monkeypatch.setattr(fleet, "targets", lambda: hosts)
    monkeypatch.setattr(fleet, "state", SimpleNamespace(failed_hosts=[hosts[2]]))
    monkeypatch.setattr(fleet.report, "RESULTS", {"a": {}, "b": {"fell": True, "taken_back": True}, "c": {}})
    assert fleet.failed() == {"b", "c"}
