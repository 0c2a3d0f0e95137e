"""What a run tells in the end, whatever happened to it: table, report, verdict, exit code."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyinfra.api.exceptions import PyinfraError

from tasks.control.host_run import HostRun, Phase, Role
from tasks.control.opening import recorder_of
from tasks.control.reporting import table
from tasks.control.reporting.recorder import FOLDER, Recorder, Unreached, check_folder, handle_signals
from tasks.control.rules.states import State
from tests.unit.control.harness import make_lab

ROOT = Path(__file__).parents[4]
NEW = "f" * 64


class Told:
    """A run for these GPU hosts, and what it says in the end."""

    def __init__(self, settings, capsys, desk, hosts="ab", words=("-y", "inventories/prod.py", "tasks/status.py")):
        self.lab = make_lab(settings, gpus=list(hosts), words=words)
        self.run, self.capsys, self.desk = self.lab.run, capsys, desk
        self.run.reported = list(hosts)
        self.run.waves = []
        self.recorder = Recorder(self.run, self.lab.state, table.STATUS)
        for name in hosts:
            self.says(name, State.IN_SYNC)

    def __getitem__(self, name) -> HostRun:
        return self.run.hosts[name]

    def says(self, name, state, why="", **row):
        self[name].says(state, why)
        for key, value in row.items():
            setattr(self[name].report, key, value)

    def write(self, why="") -> tuple[bool, str]:
        """(whether nothing failed, what was printed)."""
        self.recorder.written = False
        self.recorder.write(why)
        return not self.recorder.failed, self.capsys.readouterr().err

    @property
    def last(self):
        return json.loads((self.desk / FOLDER / "last.json").read_text())


@pytest.fixture
def told(settings, capsys, desk):
    return lambda hosts="ab", **more: Told(settings, capsys, desk, hosts, **more)


# ---------------------------------------------------------------------------------------------------------- the verdict


def test_a_run_whose_hosts_are_all_good_is_ok_and_one_bad_host_is_a_failed_run(told):
    run = told("abc")
    good, said = run.write()
    assert good and "3 of 3 hosts ok" in said and run.last["verdict"] == "ok" and run.last["retry"] is None
    assert "Run again" not in said
    run.says("b", State.DRIFTED, "the service is exited")
    good, said = run.write()
    assert not good and run.recorder.failed == ["b"] and run.last["verdict"] == "failed"
    assert "2 of 3 hosts ok" in said and "b: the service is exited" in said
    assert (
        run.last["retry"] == "pyinfra -y inventories/prod.py tasks/status.py"
        and "Run again, once fixed: pyinfra" in said
    )


def test_a_run_that_was_for_no_host_is_no_success(told):
    run = told("a")
    assert run.recorder.document("").verdict == "ok"
    run.run.reported = []
    assert run.recorder.document("").verdict == "failed"


@pytest.mark.parametrize("state", list(State), ids=lambda state: state.label)
def test_every_bad_state_fails_the_run_and_no_good_one_does(told, state):
    run = told("a")
    run.says("a", state, "because")
    good, _ = run.write()
    assert good is state.good is run.last["hosts"]["a"]["good"] and run.last["hosts"]["a"]["state"] == state.label


def test_a_host_that_serves_and_was_not_readmitted_is_bad(told):
    run = told("a")
    run.says("a", State.ACTIVE)
    assert run.write()[0]
    run["a"].not_readmitted = True
    good, said = run.write()
    assert not good and "active, not readmitted" in said
    row = run.last["hosts"]["a"]
    assert (row["state"], row["good"], row["not_readmitted"]) == ("active", False, True)


def test_failures_stand_last_and_loud_with_the_command_that_goes_on(told):
    run = told("ab", words=("-y", "x.py", "deploy.py"))
    run.says("a", State.FAILED, "because [x]")
    run.says("b", State.ACTIVE)
    said = run.write()[1]
    assert said.index("│ b") < said.index("│ a") and "a: because [x]" in said
    assert "1 of 2 hosts ok" in said and "pyinfra -y x.py deploy.py" in said


# ----------------------------------------------------------------------------------------- what pyinfra says of a host


def test_what_pyinfra_says_of_a_connection_stands_in_the_table(told):
    logger, handler = logging.getLogger("pyinfra"), Unreached()
    logger.addHandler(handler)
    try:
        logger.error("    [\x1b[1ma\x1b[0m]    \x1b[31mCould not connect (no route to bastion)\x1b[0m")
        logger.warning("    [b]    nothing bad")
        run = told("ab")
        run.lab.state.activated_hosts.remove(run["a"].target)
        run["a"].says(State.INCOMPLETE)
        good, said = run.write()
    finally:
        logger.removeHandler(handler)
    assert not good and "a: no ssh connection: Could not connect (no route to bastion)" in said
    assert run.last["hosts"]["a"]["state"] == "unreachable" and run.last["hosts"]["b"]["state"] == "in sync"
    assert handler.hosts == {"a": "Could not connect (no route to bastion)"}


def test_a_host_that_pyinfra_dropped_failed_whatever_it_was_before(told):
    run = told("ab")
    run.lab.state.failed_hosts.add(run["a"].target)
    good, said = run.write()
    assert not good and "a: see the lines above" in said and run.last["hosts"]["a"]["state"] == "failed"
    run.says("a", State.DAMAGED, "a blob is damaged")
    run.write()
    assert run.last["hosts"]["a"]["state"] == "damaged", "its own word is better"


def test_a_host_out_of_service_is_left_out_of_all_that(told):
    run = told("ab")
    run.lab.state.activated_hosts.clear()
    run.lab.state.activated_hosts.append(run["b"].target)
    run.says("a", State.OUT_OF_SERVICE, "out of service: fan")
    assert run.write()[0] and run.last["hosts"]["a"]["state"] == "out of service"


def test_a_host_that_the_limit_leaves_out_was_not_to_be_reached(told):
    run = told("ab")
    run.lab.state.activated_hosts.remove(run["a"].target)
    run["a"].in_limit = False
    assert run.write()[0]


# ------------------------------------------------------------------------------------------------------ runs cut short


def test_work_that_was_cut_is_not_done_whatever_was_done_before(told):
    run = told("ab")
    for name in "ab":
        run.says(name, State.PROVEN)
    run["a"].running = Phase("stage", time.time() - 3)
    good, said = run.write("stopped by SIGINT")
    assert not good and "a: stopped by SIGINT" in said and "1 of 2 hosts ok" in said
    assert [(each["phase"], each["ok"]) for each in run.last["hosts"]["a"]["phases"]] == [("stage", False)]
    assert run.last["hosts"]["a"]["seconds"] >= 3


@pytest.mark.parametrize("phase", ["activate", "withdraw"])
def test_of_a_switch_that_was_cut_nobody_says_what_serves(told, phase):
    run = told("ab")
    for name in "ab":
        run.says(name, State.ACTIVE, release=NEW)
    run["a"].running = Phase(phase, time.time() - 3)
    said = run.write("stopped by SIGINT")[1]
    rows = run.last["hosts"]
    assert (rows["a"]["release"], rows["b"]["release"]) == (None, NEW)
    assert "a: stopped by SIGINT; its switch ends by itself there" in said
    assert "pyinfra -y inventories/prod.py tasks/status.py" not in rows["a"]["why"].partition("its switch")[0]


def test_a_phase_that_can_be_cut_leaves_what_serves_known(told):
    run = told("a")
    run.says("a", State.READY, release=NEW)
    run["a"].running = Phase("stage", time.time())
    run.write("stopped")
    assert run.last["hosts"]["a"]["release"] == NEW


@pytest.mark.parametrize(
    ("rollout", "dry", "stopped", "good"),
    [(True, False, "", False), (False, False, "", True), (True, True, "", True), (False, False, "stopped", False)],
)
def test_what_is_good_on_the_way_is_incomplete_where_the_run_ended_there(told, rollout, dry, stopped, good):
    words = (*(["--dry"] if dry else ["-y"]), "inventories/prod.py", "deploy.py")
    run = told("a", words=words)
    run.run.is_rollout = rollout
    run.says("a", State.READY)
    assert run.write(stopped)[0] is good
    assert run.last["hosts"]["a"]["state"] == ("ready" if good else "incomplete")


def test_a_host_that_no_operation_spoke_of_is_incomplete(told):
    run = told("a")
    run.says("a", State.INCOMPLETE)
    good, said = run.write()
    assert not good and "a: the run ended before this host was finished" in said


# ---------------------------------------------------------------------------------------------------------- the report


def test_a_report_that_cannot_be_written_is_told_all_the_same(told, desk):
    (desk / FOLDER).write_text("in the way")
    run = told("a")
    run.says("a", State.DRIFTED, "the service is exited")
    good, said = run.write()
    assert not good and "a: the service is exited" in said and "NOT WRITTEN" in said


def test_no_run_begins_whose_report_cannot_be_written(desk):
    check_folder()
    assert (desk / FOLDER).is_dir()
    (desk / FOLDER).rmdir()
    (desk / FOLDER).write_text("in the way")
    with pytest.raises(PyinfraError, match="cannot be written"):
        check_folder()


def test_the_report_is_written_once_and_by_whatever_ends_first(told):
    run = told("a")
    run.recorder.host_disconnect(run.lab.state, run["a"].target)
    first = (run.desk / FOLDER / "last.json").read_bytes()
    run.says("a", State.DRIFTED)
    run.recorder.write("too late")
    assert (run.desk / FOLDER / "last.json").read_bytes() == first and run.recorder.failed == []


def test_the_report_holds_no_password_of_the_command_line(told):
    run = told("a", words=("-y", "--ssh-password", "hunter2", "inventories/prod.py", "tasks/status.py"))
    run.says("a", State.DRIFTED, "x. Next: deploy.py")
    said = run.write()[1]
    assert (
        "hunter2" not in said and "hunter2" not in json.dumps(run.last) and "--ssh-password '…'" in run.last["command"]
    )


def test_a_row_has_its_wave(told):
    run = told("abc")
    run.run.waves = [["b"], ["a"]]
    run.write()
    assert {name: row["wave"] for name, row in run.last["hosts"].items()} == {"a": 2, "b": 1, "c": None}


def test_the_release_is_the_runs_or_the_one_that_all_hosts_have(told, lock):
    run = told("ab")
    for name in "ab":
        run[name].report.release = NEW
    assert run.recorder.document("").release == NEW
    run["b"].goes_to = "e" * 64
    assert run.recorder.document("").release is None
    run.run.lock = lock
    assert run.recorder.document("").release == lock.id


def test_a_rollout_leaves_a_ticket_and_a_dry_one_none(told, lock):
    run = told("a", words=("-y", "inventories/prod.py", "deploy.py"))
    run.run.lock, run.run.is_rollout, run.run.waves = lock, True, [["a"]]
    run.says("a", State.UNCHANGED)
    said = run.write()[1]
    (ticket,) = (run.desk / FOLDER).glob("*.html")
    assert f"reports/{ticket.name}" in said and run.last["costs"]["mount"]["image"] == 1000
    dry = told("a", words=("--dry", "inventories/prod.py", "deploy.py"))
    dry.run.lock, dry.run.is_rollout = lock, True
    assert "reports/last.json" in dry.write()[1] and len(list((run.desk / FOLDER).glob("*.html"))) == 1


def test_nothing_that_a_host_says_steers_a_terminal(told):
    run = told("a")
    run.says("a", State.DRIFTED, "is frozen: \033]0;title\007", release="\033[31mx")
    said = run.write()[1]
    assert "\033[31mx" not in said and "\033]0" not in said and "is frozen: ?]0;title?" in said


def test_what_to_run_next_can_be_pasted(told):
    run = told("a")
    why = "b: a switch of deploy.py. Next: wait, or tasks/unlock.py --data lease=x1, or pyinfra -y i.py deploy.py"
    run.says("a", State.DRIFTED, f"a: {why}")
    said = run.write()[1]
    assert "\na: b: a switch of deploy.py. Next: wait, or pyinfra -y inventories/prod.py tasks/unlock.py --data" in said
    assert said.count("pyinfra -y i.py deploy.py") == 1


def test_a_dry_run_says_that_one_host_would_hold_the_others(told):
    run = told("ab", words=("--dry", "inventories/prod.py", "tasks/rollback.py"))
    run.run.is_rollout, run.run.waves = True, [["a", "b"]]
    run.says("a", State.WOULD_CHANGE, "to 0")
    run.says("b", State.FAILED, "nowhere to go")
    good, said = run.write()
    assert not good and "a: would be held: b first" in said and "0 of 2 hosts ok" in said and "wave 1: a, b" in said
    assert run.last["hosts"]["a"]["state"] == "held"
    run.says("b", State.WOULD_CHANGE, "to 0")
    assert run.write()[0]


# ------------------------------------------------------------------------------------------ how a run ends, otherwise


def test_a_recorder_is_found_again_by_pyinfras_own_list(told):
    run = told("a")
    assert recorder_of(SimpleNamespace(callback_handlers=[object(), run.recorder])) is run.recorder
    assert recorder_of(SimpleNamespace(callback_handlers=[object()])) is None


ENDS = """
import sys
from types import SimpleNamespace
sys.argv = ["pyinfra", "inventories/prod.py", "deploy.py"]
import config
from pyinfra.context import ctx_state
from tasks.control.host_run import HostRun, Role
from tasks.control.opening import Recorder
from tasks.control.reporting.table import DEPLOY
from tasks.control.run import Run
from tasks.control.settings_layers import read_settings
from tasks.control.rules.states import State
values = {"lock": "x", "models": [{"repo": "a/b", "revision": "main"}], "image": "docker-daemon:x:1"}
target = object()
me = HostRun("gpu1", Role.GPU, target, read_settings([("x", values)]), config.command_line)
me.says(State[sys.stdin.read()])
run = Run(config.command_line, me, {"gpu1": me}, ["gpu1"], None, reported=["gpu1"])
recorder = Recorder(run, SimpleNamespace(activated_hosts=[target], failed_hosts=set()), DEPLOY)
ctx_state.set(SimpleNamespace(callback_handlers=[recorder]))
config.unreached.command_began = True
recorder.write()
"""


@pytest.mark.parametrize(("state", "code"), [("UNCHANGED", 0), ("WITHDRAWN", 1)])
def test_what_the_report_calls_failed_is_the_exit_code(desk, state, code):
    """pyinfra has chosen its own before the report is written."""
    (desk / "inventories").mkdir()
    (desk / "inventories/prod.py").touch()
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{ENDS}"]
    done = subprocess.run(words, cwd=desk, input=state, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert f"{1 - code} of 1 hosts ok" in done.stderr


def test_a_closed_terminal_is_an_end_as_ctrl_c_is_unless_nohup_says_otherwise(told):
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in ends}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        handle_signals(told("a").recorder)
        ours = {signal.getsignal(number) for number in ends}
        assert len(ours) == 1 and not ours & {*before.values(), signal.SIG_DFL}
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        handle_signals(told("a").recorder)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


STOPPED = (
    ENDS.replace("recorder.write()", "")
    + """
import os, signal
from tasks.control.reporting.recorder import handle_signals
handle_signals(recorder)
os.kill(os.getpid(), getattr(signal, sys.argv[-1]))
"""
)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_stopped_run_writes_its_report_and_ends_by_the_signals_own_code(desk, name, code):
    (desk / "inventories").mkdir()
    (desk / "inventories/prod.py").touch()
    script = STOPPED.replace("sys.argv[-1]", repr(name))
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{script}"]
    done = subprocess.run(words, cwd=desk, input="READY", capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    row = json.loads((desk / FOLDER / "last.json").read_text())["hosts"]["gpu1"]
    assert row["state"] == "incomplete" and f"stopped by {name}" in row["why"]


def test_a_role_is_written_as_the_manual_says(told):
    run = told("a")
    run.run.reported = ["bastion", "a"]
    run.run.bastion.says(State.PROVEN)
    run.write()
    assert {name: row["role"] for name, row in run.last["hosts"].items()} == {
        "bastion": Role.BASTION.value,
        "a": Role.GPU.value,
    }
