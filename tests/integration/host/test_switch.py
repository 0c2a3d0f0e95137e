"""A switch whose disk fills up, whose program is killed, whose service dies while nobody looks."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tasks.remote.common import files
from tasks.remote.common.docker import engine_answers
from tasks.remote.host import lease, records, service
from tasks.remote.host.container import Container, Identity
from tasks.remote.host.switch import activation, checks, confirmation, detached, program, revert, settle
from tasks.remote.host.switch.outcome import Outcome
from tasks.remote.host.switch.request import Recheck, Request
from tasks.shared.errors import Refused
from tasks.shared.stack import MARKER

pytestmark = pytest.mark.integration
REAL = service.Service


class Stub:
    """A service without an engine: what is up is what its override said."""

    def __init__(self, stack, override, project, name):
        self.stack, self.project, self.name, self.override = stack, project, name, os.path.join(stack, override)

    up_now: dict | None = None

    def container(self):
        return Container(Stub.up_now) if Stub.up_now else None

    def containers(self):
        return [Stub.up_now["Id"]] if Stub.up_now else []

    def up(self, within, recreate=False):
        text = files.read_text(self.override)
        Stub.up_now = {"Id": f"c {text}", "text": text, "State": {"Status": "running", "StartedAt": "then"}}

    def wait_healthy(self, within, before=None):
        return self.container()

    def clear(self, name=None):
        Stub.up_now = None

    def must(self, *words):
        Stub.up_now = {**Stub.up_now, "State": {"Status": "exited"}} if words[0] == "stop" else None

    def logs(self, size=0):
        return ""

    def check_inside(self, *words):
        pass

    soak = remove_unused_loader = check_inside


@pytest.fixture
def machine(store, monkeypatch):
    """A host that serves `one`, and may be switched to `two`: machine(**answers to --) -> the outcome of `activate`."""
    stack = store / "stack"
    stack.mkdir()
    for name in ("one", "two"):
        for folder in ("state", "releases"):
            (store / folder / name).mkdir(parents=True, exist_ok=True)
        (store / "releases" / name / "lock.json").write_text("{}")
        (store / "state" / name / "compose.override.yaml").write_text(f"{MARKER}; {name}")
    (stack / "o.yml").write_text(f"{MARKER}; one")
    (store / "current").write_text("one\n")
    (store / "previous").write_text("zero\n")
    monkeypatch.setattr(service, "Service", Stub)
    monkeypatch.setattr(activation, "check_before", lambda *words: None)
    monkeypatch.setattr(activation, "ignore_signals", lambda: None)
    monkeypatch.setattr(revert, "engine_answers", lambda: True)
    monkeypatch.setattr(activation.signed, "check", lambda *words: None)
    Stub(str(stack), "o.yml", "p", "s").up(1)

    def activate(announced=lambda answer: None, **more):
        place = service.Place(str(stack), "o.yml", "p", "s")
        wanted = Request(str(store), "two", place, signers="/none", within=1.0, soak=0.0, confirm=5.0)

        def confirm(answer):
            announced(answer)
            (store / "state/confirmation").write_text(answer["token"])

        return activation.activate(dataclasses.replace(wanted, **more), confirm)

    yield activate
    Stub.up_now = None


def full(monkeypatch, *names):
    """No space for files of these names."""
    real = files.write_file

    def write(path, text, *more):
        if os.path.basename(path) in names:
            raise OSError(28, "No space left on device", path)
        real(path, text, *more)

    def everywhere(function):
        for module in (activation, records, revert, settle):
            monkeypatch.setattr(module, "write_file", function)

    everywhere(write)
    return lambda: everywhere(real)


def ended(answer):
    """What an answer says of the end: (state, whether the host takes requests again)."""
    return answer["state"], answer["readmitted"]


def records_of(store):
    return [(store / name).read_text().strip() for name in ("current", "previous", "stack/o.yml")]


def test_a_good_switch_leaves_the_old_release_as_previous(store, machine):
    assert machine()["state"] == "active"
    assert records_of(store) == ["two", "one", f"{MARKER}; two"] and not (store / "state/pending").exists()


@pytest.mark.parametrize("name", ["current", "previous", "compose.confirmed.yaml"])
def test_a_disk_that_fills_up_after_the_confirmation_turns_nothing_back(store, machine, monkeypatch, name):
    space = full(monkeypatch, name)
    with pytest.raises(OSError, match="No space"):
        machine()
    assert Stub.up_now["text"].endswith("two"), "the service was not touched"
    assert json.loads((store / "state/pending").read_text())["confirmed"]
    space()
    assert revert.recover(records.Records(str(store))) == Outcome("active")
    assert records_of(store) == ["two", "one", f"{MARKER}; two"]


def test_a_disk_that_is_full_before_the_confirmation_leaves_all_as_it_was(store, machine, monkeypatch):
    monkeypatch.setattr(activation, "await_confirmation", lambda *words: full(monkeypatch, "pending"))
    assert machine()["state"] == "withdrawn"
    assert records_of(store) == ["one", "zero", f"{MARKER}; one"] and Stub.up_now["text"].endswith("one")


@pytest.mark.parametrize(
    "name", ["previous", "state/outcome", "state/confirmation", "state/one/compose.confirmed.yaml"]
)
def test_a_directory_in_a_records_place_is_refused_before_anything_is_touched(store, name):
    with pytest.raises(Refused, match="is not built"):
        checks.check_before(records.Records(str(store)), None, "one", "")
    (store / name).mkdir()
    with pytest.raises(Refused, match=f"{name} is not a file|{name}: is not a file"):
        checks.check_before(records.Records(str(store)), None, "one", "")


def test_what_was_confirmed_stays_until_it_restarts_or_the_record_is_anothers(store, machine, monkeypatch):
    monkeypatch.setattr(Stub, "soak", REAL.soak)
    answer = machine()
    place = service.Place("", "", "p", "s")
    confirmed = Identity(answer["container"], answer["started"], frozenset(["n"]))
    asked = Recheck(str(store), "two", place, confirmed, {})
    with pytest.raises(Refused, match="was cut off; expected its networks n, found without n"):
        checks.recheck(asked)
    Stub.up_now["NetworkSettings"] = {"Networks": {"n": {}}}
    assert checks.recheck(asked) == {}
    with pytest.raises(Refused, match="has another current release"):
        checks.recheck(dataclasses.replace(asked, release="one"))
    Stub.up_now["State"]["StartedAt"] = "later"
    with pytest.raises(
        Refused, match=r"did not stay up; expected the one that started then, found one that started later, running"
    ):
        checks.recheck(asked)


def test_what_fails_after_the_confirmation_is_told_to_who_waits_for_it(store, machine, monkeypatch):
    def fails(request, announce):
        announce({"token": "7"})
        raise OSError(28, "No space left on device", "/x/current")

    monkeypatch.setattr(detached, "activate", fails)
    pipe = os.open(os.devnull, os.O_WRONLY)
    detached.run_activation(Request(str(store), "two", service.Place("", "", "", ""), confirm=1), pipe)
    answer = confirmation.bring_confirmation(str(store), "7", 5.0)
    assert answer["state"] == "unknown" and answer["error"]["where"] == "/x/current"
    assert answer["error"]["next"].startswith("tasks/prune.py, or free some space")
    with pytest.raises(Refused, match="has no activation that waits"):
        confirmation.bring_confirmation(str(store), "8", 5.0)


def test_a_revert_that_fails_is_frozen_even_where_nothing_can_be_written_of_it(store, machine, monkeypatch):
    def sick(self, *words):
        full(monkeypatch, "o.yml", "frozen")
        raise Refused("s", "is unhealthy")

    monkeypatch.setattr(Stub, "check_inside", sick)
    answer = machine()
    assert answer["state"] == "frozen" and "is unhealthy" in answer["error"]["what"]
    assert (store / "state/pending").exists() and Stub.up_now is None, "what ran may be what fills the disk"


def test_a_container_that_was_never_touched_is_not_removed_by_the_way_back(store, machine, monkeypatch):
    """As where Compose refuses before it comes to it: an external network that is gone, a port, its own file."""
    removed, serves = [], Stub.up_now

    def refused(self, within, recreate=False):
        raise Refused("docker compose up", "failed", found="network front declared as external, but could not be found")

    monkeypatch.setattr(Stub, "up", refused)
    monkeypatch.setattr(Stub, "clear", lambda self, name=None: removed.append(Stub.up_now))
    answer = machine()
    assert answer["state"] == "withdrawn" and "declared as external" in answer["error"]["found"]
    assert Stub.up_now is serves and not removed
    assert records_of(store) == ["one", "zero", f"{MARKER}; one"] and not (store / "state/pending").exists()

    def sick(self, within, recreate=False):
        serves["State"]["Health"] = {"Status": "unhealthy"}
        refused(self, within)

    monkeypatch.setattr(Stub, "up", sick)
    assert machine()["state"] == "frozen" and removed, "one that is no longer what it was is made anew"


def test_a_host_that_was_not_readmitted_stays_that_where_a_run_has_no_readmit(store, machine):
    mark = store / "state/not-readmitted"
    assert ended(machine(readmit="exit 3")) == ("active", False) and "code 3" in mark.read_text()
    again = machine(release="one")
    assert ended(again) == ("active", False) and f"rm {mark}" in again["error"]["next"]
    assert "code 3" in mark.read_text(), "and it still says why"
    assert ended(machine(readmit="true")) == ("active", True) and not mark.exists()


@pytest.mark.parametrize("status", ["exited", "paused"])
def test_nor_is_one_that_did_not_run(store, machine, monkeypatch, status):
    monkeypatch.setattr(Stub, "clear", lambda self, name=None: 1 / 0)
    Stub.up_now["State"]["Status"] = status
    serves = Stub.up_now
    assert machine(drain="exit 7")["state"] == "withdrawn"
    assert Stub.up_now is serves and serves["State"]["Status"] == status


@pytest.mark.docker
def test_an_engine_that_is_down_does_not_answer(monkeypatch):
    """Whatever the exit code of `docker info` is, which has no engine to ask."""
    assert engine_answers(), "the control"
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    assert not engine_answers()


def test_nor_does_one_whose_client_ends_well_all_the_same(tmp_path, monkeypatch):
    """Docker's client 26.1.5 without an engine, as seen on a host: `info` prints an empty line and ends with 0, `version` with 1."""
    client = tmp_path / "docker"
    client.write_text('#!/bin/sh\n[ "$1" = info ] && echo\n')
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert not engine_answers()


def test_a_readmit_that_could_not_be_noted_is_done_again_by_the_next_run(store, machine, monkeypatch):
    space = full(monkeypatch, "not-readmitted")
    answer = machine(readmit=f"test -e {store}/balancer")
    assert ended(answer) == ("active", False) and (store / "state/pending").exists()
    space()
    (store / "balancer").touch()
    assert revert.recover(records.Records(str(store))) == Outcome("active") and not (store / "state/pending").exists()


def test_what_dies_while_somebody_logs_in_is_not_confirmed(store, machine, monkeypatch):
    looks = iter([None])

    def soak(self, found, seconds):
        if next(looks, "again") == "again":
            raise Refused("s", "did not stay up")

    monkeypatch.setattr(Stub, "soak", soak)
    assert machine()["state"] == "withdrawn" and records_of(store)[0] == "one"


class Late:
    """A service that is well until the host is confirmed, and from then on has one fault."""

    def __init__(self, monkeypatch, store, fault):
        self.is_announced, self.fault, self.checks = False, fault, []
        monkeypatch.setattr(Stub, "soak", REAL.soak)
        monkeypatch.setattr(Stub, "check_inside", lambda stub, *words: self.check_inside())
        server = HTTPServer(("127.0.0.1", 0), self.handler())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.close = server.shutdown
        self.probe = {"url": f"http://127.0.0.1:{server.server_port}/", "body": {"q": "{query}"}, "answer": "embedding"}
        golden = {"queries": ["one"], "vectors": {"query0": {"shape": [1, 2], "f16": "ADwAAA=="}}}  # [[1.0, 0.0]]
        (store / "state/two/goldens.json").write_text(json.dumps({"classes": {"cpu": golden}}))

    def announced(self, answer):
        self.is_announced = True
        self.checks.append("announced")
        if self.fault == "it has restarted":
            Stub.up_now = {**Stub.up_now, "State": {**Stub.up_now["State"], "StartedAt": "later"}}

    def check_inside(self):
        self.checks.append("inside")
        if self.is_announced and self.fault == "its mount is gone":
            raise Refused("s", "does not have the release where its delivery puts it")

    def handler(late):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                late.checks.append("probe")
                is_wrong = late.is_announced and late.fault == "it embeds otherwise"
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps({"embedding": [[0.0, 1.0] if is_wrong else [1.0, 0.0]]}).encode())

            def log_message(self, *_):
                pass

        return Handler


LATE = {
    "it has restarted": "did not stay up",
    "its mount is gone": "does not have the release",
    "it embeds otherwise": "embeds otherwise than the goldens",
    "nothing": None,
}


@pytest.mark.parametrize("fault", LATE)
def test_the_service_is_checked_once_more_after_the_confirmation(store, machine, monkeypatch, fault):
    """Nobody watches it while the controller logs in again. What is then wrong is not confirmed."""
    late = Late(monkeypatch, store, fault)
    answer = machine(announced=late.announced, probe=late.probe)
    late.close()
    if LATE[fault] is None:
        assert ended(answer) == ("active", True) and answer["cosine"] == 1.0, "the control"
        assert late.checks == ["inside", "probe", "announced", "inside", "probe"]
        return
    assert ended(answer) == ("withdrawn", True) and LATE[fault] in answer["error"]["what"]
    assert late.is_announced and records_of(store) == ["one", "zero", f"{MARKER}; one"]


def test_a_readmit_that_is_still_to_be_run_is_owed_until_it_has_run(store, machine, monkeypatch):
    seen = []
    assert ended(machine(announced=seen.append, drain="true", readmit="true")) == ("active", True)
    assert ended(seen[0]) == ("awaiting", False), "drained, and not readmitted yet"
    assert ended(machine(announced=seen.append, release="one")) == ("active", True)
    assert ended(seen[1]) == ("awaiting", True), "nothing to run"
    for readmit, is_readmitted in (("true", False), (None, True)):
        with monkeypatch.context() as patch:
            patch.setattr(Stub, "up", lambda *words: 1 / 0)
            assert ended(machine(drain="true", readmit=readmit)) == ("withdrawn", True), "it was not touched"
            patch.setattr(Stub, "check_inside", lambda *words: 1 / 0)
            patch.setattr(Stub, "up", lambda *words: Stub.up_now["State"].update(Status="exited") or 1 / 0)
            assert ended(machine(drain="true", readmit=readmit)) == ("frozen", is_readmitted)
        (store / "state/frozen").unlink()
        (store / "state/pending").unlink()
        Stub(str(store / "stack"), "o.yml", "p", "s").up(1)


def test_a_service_that_crashes_in_a_loop_is_left_to_it(store, machine, monkeypatch):
    Stub.up_now["State"]["Status"] = "restarting"
    monkeypatch.setattr(activation, "await_confirmation", lambda *words: 1 / 0)
    assert machine()["state"] == "withdrawn" and Stub.up_now["State"]["Status"] == "running", "not stopped for good"


def test_a_rollout_that_lost_its_lease_switches_nothing(store, machine):
    with pytest.raises(Refused, match=r"lost its lease.*expected x1, found none"):
        machine(lease="x1")
    with open(store / ".lease.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (store / "lease.json").write_text('{"id": "x2", "who": "eve"}')
        with pytest.raises(Refused, match="found lease x2 of eve"):
            machine(lease="x1")
        assert records_of(store)[0] == "one" and machine(lease="x2")["state"] == "active"


def test_recover_says_that_it_could_not(store, monkeypatch):
    monkeypatch.setattr(program, "engine_answers", lambda: True)
    outcomes = {Outcome("active"): True, Outcome("frozen"): False, Outcome("withdrawn", readmitted=False): False}
    for outcome, ok in outcomes.items():
        monkeypatch.setattr(program, "recover", lambda records, outcome=outcome: outcome)
        answer = program.recover_alone(str(store), 1)
        assert answer == {"recovered": outcome.state, "readmitted": outcome.readmitted, "ok": ok}
    monkeypatch.setattr(program, "recover", lambda records: None)
    assert program.recover_alone(str(store), 1) == {"recovered": None, "readmitted": True}


# ------------------------------------------------------------------------------------------------------ what outlives us

HOLDER = """
import sys
sys.path[:0] = {paths}
from tasks.remote.common.files import hold_lock
from tasks.remote.common.docker import docker
with hold_lock({lock!r}, "busy"):
    print("held", flush=True)
    print(docker("compose", timeout={timeout}).returncode, flush=True)
"""


@pytest.fixture
def holder(tmp_path):
    """holder(what docker does, timeout=…): a process that runs it, holding a lock; -> (process, lock)."""
    running = []

    def start(script, timeout=60):
        docker = tmp_path / "bin/docker"
        docker.parent.mkdir(exist_ok=True)
        docker.write_text(f"#!/bin/sh\n{script}\n")
        docker.chmod(0o755)
        paths, lock = (
            [os.path.dirname(lease.__file__), *sys.path],
            str(tmp_path / "lock"),
        )
        words = [sys.executable, "-c", HOLDER.format(paths=paths, lock=lock, timeout=timeout)]
        env = {**os.environ, "PATH": f"{docker.parent}:{os.environ['PATH']}"}
        running.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env))
        assert running[-1].stdout.readline() == "held\n"
        return running[-1], lock

    yield start
    for process in running:
        process.kill()
        process.wait()


def lives(pid):
    """Whether the process runs: one that has ended and that nobody has waited for has no command line any more."""
    return bool(files.read_text(f"/proc/{pid}/cmdline"))


def gone(what):
    until = time.monotonic() + 10
    while what():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_compose_that_outlives_its_killed_program_keeps_the_next_one_out(holder, tmp_path):
    process, lock = holder(f"echo $$ > {tmp_path}/pid; sleep 60")
    gone(lambda: not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text())
    process.kill()
    process.wait()
    assert files.is_locked(lock), "it may still be changing containers"
    os.killpg(int((tmp_path / "pid").read_text()), 9)
    gone(lambda: files.is_locked(lock))


def test_a_command_that_ran_out_of_time_ends_with_its_plugins(holder, tmp_path):
    process, lock = holder(f"sleep 61 & echo $! > {tmp_path}/plugin; wait", timeout=1)
    assert process.stdout.readline() == "124\n"
    process.wait()
    gone(lambda: lives((tmp_path / "plugin").read_text().strip()) or files.is_locked(lock))
