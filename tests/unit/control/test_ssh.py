"""What comes back over a connection that talks, that gives no session, or that is made anew."""

from __future__ import annotations

import contextlib
import io
import socket
from types import SimpleNamespace

import pytest
from paramiko import ChannelException
from pyinfra.api import StringCommand
from pyinfra.api.exceptions import ConnectError
from pyinfra.context import ctx_state

from tasks.control import ssh
from tasks.control.ssh import KeepConnected, Sessions, elevation, send_file, tune
from tasks.remote.common import files
from tasks.shared.answers import last_json_object
from tasks.shared.errors import Refused
from tests.unit.control.harness import FakeHost, used


@pytest.fixture
def target():
    with used(ctx_state, SimpleNamespace(print_output=False, print_input=False)):
        yield FakeHost("gpu1", ssh_user="root", _sudo=True, _sudo_user=None)


def refusing(error):
    def refuse(*words, **more):
        raise error

    return refuse


def test_a_connection_that_gives_no_session_says_what_to_fix(target):
    target.run_shell_command = refusing(ChannelException(2, "Connect failed"))
    ok, output = Sessions().run(target, StringCommand("true"), None, 5)
    assert not ok and output.stderr_lines[0].endswith("Next: MaxSessions in its sshd_config")


@pytest.mark.parametrize("error", [TimeoutError("slow"), OSError("broken"), EOFError(), ConnectError("no route")])
def test_a_connection_that_breaks_is_output_of_that_host_and_no_exception(target, error):
    target.run_shell_command = refusing(error)
    ok, output = Sessions().run(target, StringCommand("true"), None, 5)
    assert not ok and output.stderr_lines[0].startswith(f"gpu1: {type(error).__name__}")


def test_a_command_runs_as_root_with_its_own_limit_and_stdin(target):
    heard = {}
    target.run_shell_command = lambda command, **more: (heard.update(more), (True, None))[1]
    assert Sessions().run(target, StringCommand("true"), None, 5)[0]
    assert heard["_timeout"] == 5 and heard["_stdin"] == "" and heard["_sudo"] is True and "_sudo_user" not in heard
    Sessions().run(target, StringCommand("true"), "words", 5)
    assert heard["_stdin"] == "words"


def test_only_a_hosts_own_way_to_root_goes_with_raw_commands(target):
    assert elevation(target) == {"_sudo": True}


def test_each_host_has_its_own_limit_of_sessions():
    sessions = Sessions()
    assert sessions.of("a") is sessions.of("a") is not sessions.of("b")
    assert sessions.of("a").counter == ssh.PER_CONNECTION < 10, "sshd's usual limit"


def test_an_answer_begins_on_a_line_of_its_own():
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print("maintenance until Monday", end="")
        files.print_answer(lambda: {"current": 1}, "/x")
    assert last_json_object(out.getvalue().splitlines(), "ok") == {"ok": True, "current": 1}


def test_a_session_that_a_stuck_host_never_gives_is_not_waited_for_an_hour(target):
    transport = SimpleNamespace(is_active=lambda: True, set_keepalive=lambda seconds: None, sock=None)
    target.connector.client.get_transport = lambda: transport
    tune(target)
    assert transport.channel_timeout == ssh.UNANSWERED


def test_small_packets_go_at_once_and_a_dead_network_is_noticed(target):
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
        kept = []
        transport = SimpleNamespace(is_active=lambda: True, set_keepalive=kept.append, sock=tcp)
        target.connector.client.get_transport = lambda: transport
        tune(target)
        assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == ssh.UNANSWERED * 1000 and kept == [30]


def test_a_connection_that_is_dead_is_left_as_it_is(target):
    transport = SimpleNamespace(is_active=lambda: False)
    target.connector.client.get_transport = lambda: transport
    tune(target)
    assert not hasattr(transport, "channel_timeout")


def test_a_file_that_cannot_be_sent_is_a_failure_of_that_host_alone(target):
    waited = []
    channel = SimpleNamespace(settimeout=waited.append)
    target.connector.get_file_transfer_connection = lambda: SimpleNamespace(get_channel=lambda: channel)
    assert send_file(target, b"x", "/x") and waited == [ssh.UNANSWERED] and target.files == {"/x": b"x"}
    for error in (ConnectError("Unable to establish SFTP connection"), TimeoutError(), EOFError()):
        target.connector.get_file_transfer_connection = refusing(error)
        assert not send_file(target, b"x", "/x")


# ----------------------------------------------------------------------------------------------------- new connections


def test_a_new_connection_is_used_inside_and_the_old_one_afterwards(target):
    old = target.connector
    with Sessions().fresh(target):
        new = target.connector
        assert new is not old and target.connections == 1 and not new.client.closed
    assert target.connector is old and new.client.closed


def test_the_old_connection_comes_back_though_the_work_fails(target):
    old = target.connector
    with pytest.raises(ValueError), Sessions().fresh(target):
        raise ValueError
    assert target.connector is old


def test_a_host_that_takes_no_new_connection_is_refused_and_keeps_its_old_one(target):
    old, target.refuses_first = target.connector, 1
    with (
        pytest.raises(Refused, match="gpu1: takes no new connection, found no route to host"),
        Sessions().fresh(target),
    ):
        raise AssertionError("never inside")
    assert target.connector is old


class Cache:
    def __init__(self):
        self.cleared = 0

    def clear(self):
        self.cleared += 1


@pytest.fixture
def dead(target):
    """A host whose connection died while others worked."""
    cache = Cache()
    target.connector.client.get_transport = lambda: SimpleNamespace(is_active=lambda: target.connector.alive)
    target.connector.alive = False
    target.connector.get_file_transfer_connection = SimpleNamespace(cache=cache)
    target.reasons, target.cache = [], cache

    def connect(reason, raise_exceptions):
        target.reasons.append(reason)
        target.connected = True

    target.connect = connect
    return target


def test_a_connection_that_died_is_made_again_and_its_sftp_forgotten(dead):
    Sessions().revive(dead)
    assert dead.reasons == ["needed"] and dead.cache.cleared == 1 and dead.connected
    dead.connector.alive = True
    dead.connector.client.get_transport().set_keepalive = None
    Sessions().revive(dead)
    assert dead.reasons == ["needed"], "a live one is left alone"


def test_before_each_operation_of_a_host_its_connection_is_looked_after(dead):
    handler = KeepConnected()
    handler.operation_host_start(SimpleNamespace(ops={dead: {}}), dead, "op")
    assert dead.reasons == [], "the operation is for other hosts"
    handler.operation_host_start(SimpleNamespace(ops={dead: {"op": 1}}), dead, "op")
    assert dead.reasons == ["needed"]
    dead.connected, dead.connect = False, refusing(ConnectError("no route"))
    handler.operation_host_start(SimpleNamespace(ops={dead: {"op": 1}}), dead, "op")
    assert not dead.connected, "pyinfra says so, when the operation begins"
