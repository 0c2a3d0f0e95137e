"""rsync: one key of the bastion's for a user of each host, what is asked for is sent, and nobody waits without an end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.control import transports
from tasks.control.host_run import HostRun
from tasks.control.transports.protocol import Sent
from tasks.control.transports.rsync import Rsync, address, running
from tasks.shared.errors import Refused
from tests.unit.control.harness import FakeHost, make_lab

BLOBS = {"a" * 64: 3}


@pytest.fixture
def lab(settings, lock, tmp_path):
    lab = make_lab(settings, lock)
    known = tmp_path / "known_hosts"
    known.write_text("gpu1 ssh-ed25519 AAAA\n")
    lab.target("gpu1").data |= {"ssh_hostname": "10.0.0.1", "ssh_known_hosts_file": str(known)}
    lab.target("gpu1").answers["setup", ""] = {"ok": True}
    lab.target("bastion").answers = {
        ("push", "key"): {"ok": True, "key": "ssh-ed25519 BBBB"},
        ("push", "source"): {"ok": True, "source": "10.0.0.9"},
        ("push", "idle"): {"ok": True},
        ("push", "send"): {"ok": True, "moved": 2, "matched": 1, "sent": 12},
        ("push", "status"): {"ok": True, "running": {"gpu1": {"done": 1, "total": 3, "seconds": 1}}},
    }
    return lab


@pytest.fixture
def me(lab):
    return lab.run.hosts["gpu1"]


def work(lab, me, step, *more):
    with lab.on(me.name):
        return getattr(Rsync(1), step)(lab.run, me, *more)


def test_the_settings_choose_how_many_receive_at_once(settings):
    transport = transports.choose(settings.model_copy(update={"push_parallel": 2}))
    assert isinstance(transport, Rsync) and transport.slots.counter == 2


def test_the_host_lets_one_user_in_by_one_key_from_where_the_bastion_stands(lab, me):
    work(lab, me, "prepare")
    heard = lab.target("gpu1").call("setup").options
    assert (heard["user"], heard["key"], heard["from"]) == ("hfpush", "ssh-ed25519 BBBB", "10.0.0.9")
    assert lab.target("bastion").call("push", "source").options["to"] == "10.0.0.1"


def test_where_the_operator_says_the_bastions_address_nobody_asks_for_it(lab, me, settings):
    me.settings = settings.model_copy(update={"push_from": "192.0.2.7"})
    work(lab, me, "prepare")
    assert lab.target("gpu1").call("setup").options["from"] == "192.0.2.7"
    assert lab.target("bastion").heard() == ["push key"]


def test_an_earlier_transfer_is_waited_for(lab, me):
    work(lab, me, "finish_earlier")
    heard = lab.target("bastion").call("push", "idle")
    assert heard.options["host"] == "gpu1" and heard.timeout <= 300
    lab.target("bastion").answers["push", "idle"] = {"ok": False, "error": {"where": "gpu1", "what": "still runs"}}
    with pytest.raises(Refused, match="still runs"):
        work(lab, me, "finish_earlier")


def test_the_bastion_sends_what_it_is_asked_for_to_a_host_whose_key_is_pinned(lab, me):
    assert work(lab, me, "send", BLOBS) == Sent(2, 1, 12)
    heard = lab.target("bastion").call("push", "send")
    assert heard.document == {"blobs": BLOBS, "known_hosts": "gpu1 ssh-ed25519 AAAA\n"}
    assert heard.options["to"] == "hfpush@10.0.0.1" and heard.options["alias"] == "10.0.0.1"
    assert heard.options["port"] == "22" and heard.options["limit"] == "0" and heard.options["within"] == "14400"
    assert heard.timeout > 14400


def test_another_port_is_part_of_the_name_that_the_key_is_known_by(lab, me, settings):
    lab.target("gpu1").data["ssh_port"] = 2222
    me.settings = settings.model_copy(update={"push_port": 2022, "push_address": "192.0.2.5", "bandwidth_limit": 9})
    work(lab, me, "send", BLOBS)
    heard = lab.target("bastion").call("push", "send").options
    assert heard["alias"] == "[10.0.0.1]:2222" and heard["port"] == "2022"
    assert heard["to"] == "hfpush@192.0.2.5" and heard["limit"] == "9"


def test_nothing_to_send_is_no_transfer(lab, me):
    assert work(lab, me, "send", {}) == Sent(0, 0, 0) and lab.target("bastion").calls == []


def test_a_transfer_that_fails_is_a_refusal_and_its_place_is_free_again(lab, me):
    lab.target("bastion").answers["push", "send"] = [
        {"ok": False, "error": {"where": "gpu1", "what": "disk full"}},
        {"ok": True, "moved": 3, "matched": 0, "sent": 9},
    ]
    transport = Rsync(1)
    with lab.on("gpu1"):
        with pytest.raises(Refused, match="disk full"):
            transport.send(lab.run, me, BLOBS)
        assert transport.slots.counter == 1 and transport.display and transport.display.poller is None
        assert transport.send(lab.run, me, BLOBS).moved == 3


def test_an_address_is_the_operators_the_inventorys_or_the_name(me, settings):
    assert address(me) == "10.0.0.1"
    bare = HostRun("gpu7", me.role, FakeHost("gpu7"), settings, me.command_line)
    assert address(bare) == "gpu7"
    assert address(replace(bare, settings=settings.model_copy(update={"push_address": "x"}))) == "x"


def test_what_runs_now_is_asked_for_the_display(lab, me):
    with lab.on("gpu1"):
        assert running(lab.run) == {"gpu1": {"done": 1, "total": 3, "seconds": 1}}
        lab.target("bastion").answers["push", "status"] = None
        assert running(lab.run) == {}
