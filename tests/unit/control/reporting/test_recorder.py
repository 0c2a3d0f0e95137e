"""What a run tells in the end, whatever happened to it."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyinfra.api.exceptions import PyinfraError

from tasks.control.reporting import recorder as report
from tasks.control.reporting import table

ROOT = Path(__file__).parents[4]


class State:
    """As much of pyinfra's state as a report asks for."""

    def __init__(self, *names):
        self.failed_hosts, self.activated_hosts, self.callback_handlers, self.inventory = set(), list(names), [], self

    def add_callback_handler(self, handler):
        pass

    def get_host(self, name):
        return name


@pytest.fixture
def told(monkeypatch, tmp_path, capsys):
    """told(known, …): the report of a run that knows this -> (whether all is well, what it said)."""
    monkeypatch.setattr(report, "FOLDER", tmp_path / "reports")
    for name, empty in (("RESULTS", {}), ("UNREACHED", {}), ("FAILED", []), ("BEGUN", {})):
        monkeypatch.setattr(report, name, empty)
    monkeypatch.setattr(sys, "argv", ["pyinfra", "-y", "inventories/prod.py", "tasks/status.py"])

    def write(known, reached=None, why="", plan=None, locked=None):
        for name, values in known.items():
            report.record(name, **values)
        state = State(*(known if reached is None else reached))
        good = report.Report(state, dict.fromkeys(known, "gpu"), None, table.STATUS, plan, locked=locked).write(why)
        return good, capsys.readouterr().err

    return write


def test_a_run_that_was_for_no_host_is_no_success(told):
    assert told({"a": {"state": "in order"}})[0]
    report.RESULTS.clear()
    assert not told({})[0]


def test_what_pyinfra_says_of_a_connection_stands_in_the_table(told):
    logger = logging.getLogger("pyinfra-test")
    logger.addHandler(report.Unreached())
    logger.error("    [\x1b[1ma\x1b[0m]    \x1b[31mCould not connect (no route to bastion)\x1b[0m")
    good, said = told({"a": {}}, reached=[])
    assert not good and "a: no ssh connection: Could not connect (no route to bastion)" in said


def test_a_report_that_cannot_be_written_is_told_all_the_same(told, tmp_path):
    (tmp_path / "reports").write_text("in the way")
    good, said = told({"a": {"state": "drifted", "why": "the service is exited"}})
    assert not good and "a: the service is exited" in said and "NOT WRITTEN" in said


def test_no_run_begins_whose_report_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "reports").write_text("in the way")
    monkeypatch.setattr(report, "FOLDER", tmp_path / "reports")
    with pytest.raises(PyinfraError, match="cannot be written"):
        report.install(State(), {}, None)


def test_work_that_was_cut_is_not_done_whatever_was_done_before(told):
    report.BEGUN["a"] = ("stage", time.time() - 3, {"ok": False})
    good, said = told({"a": {"state": "proven"}, "b": {"state": "proven"}}, why="stopped by SIGINT")
    assert not good and "a: stopped by SIGINT" in said and "1 of 2 as asked" in said
    assert [(each["phase"], each["ok"]) for each in report.RESULTS["a"]["phases"]] == [("stage", False)]


def test_of_a_switch_that_was_cut_nobody_says_what_serves(told, tmp_path):
    report.BEGUN["a"] = ("activate", time.time() - 3, {"ok": False})
    said = told({name: {"state": "ready", "release": "f" * 64} for name in "ab"}, why="stopped by SIGINT")[1]
    rows = json.loads((tmp_path / "reports/last.json").read_text())["hosts"]
    assert (rows["a"]["release"], rows["b"]["release"]) == (None, "f" * 64)
    assert "a: stopped by SIGINT; its switch ends by itself there" in said


def test_a_row_has_its_wave(told, tmp_path):
    told({name: {"state": "active"} for name in "abc"}, plan=lambda: [["b"], ["a"]])
    last = json.loads((tmp_path / "reports/last.json").read_text())
    assert {name: row["wave"] for name, row in last["hosts"].items()} == {"a": 2, "b": 1, "c": None}


@pytest.mark.parametrize(("failed", "code"), [([], 0), (["a"], 1)])
def test_what_the_report_calls_failed_is_the_exit_code(failed, code):
    """pyinfra has chosen its own before the report is written."""
    words = "import sys; sys.argv = ['pyinfra', 'inventories/prod.py', 'deploy.py']; import config, tasks.control.run"
    said = f"{words}; config.report.FAILED.extend({failed})"
    assert subprocess.run([sys.executable, "-c", said], cwd=ROOT).returncode == code


def test_a_closed_terminal_is_an_end_as_ctrl_c_is_unless_nohup_says_otherwise(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in ends}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        report.install(State(), {}, None)
        assert all(signal.getsignal(number).__name__ == "end" for number in ends)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        report.install(State(), {}, None)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_nothing_that_a_host_says_steers_a_terminal(told):
    said = told({"a": {"state": "drifted", "release": "\033[31mx", "why": "is frozen: \033]0;title\007"}})[1]
    assert "\033[31mx" not in said and "\033]0" not in said and "is frozen: ?]0;title?" in said


def test_what_to_run_next_can_be_pasted(told):
    why = "b: a switch of deploy.py. Next: wait, or tasks/unlock.py --data lease=x1, or pyinfra -y i.py deploy.py"
    said = told({"a": {"state": "drifted", "why": f"a: {why}"}})[1]
    assert "\na: b: a switch of deploy.py. Next: wait, or pyinfra -y inventories/prod.py tasks/unlock.py --data" in said
    assert said.count("pyinfra -y i.py deploy.py") == 1


def test_a_change_of_the_embedding_space_is_told_once_for_all_hosts(told):
    known = {name: {"state": "in order", "from_space": "old", "to_space": "new", "space": "old"} for name in "ab"}
    known["a"]["space"] = "new"
    known |= {"c": {"state": "in order", "from_space": "new", "to_space": "new"}}
    known |= {"d": {"state": "in order", "from_space": "none", "to_space": "new"}}
    assert told(known)[1].count("embedding space: old -> new on 2 hosts, 1 moved;") == 1


def test_a_fleet_on_two_releases_is_told_though_each_host_is_in_order(told):
    known = {name: {"state": "in order", "release": "a" * 64} for name in "abc"}
    assert "not one release" not in told(known)[1]
    away = {"x": {"state": "out of service", "release": None}, "d": {"state": "empty"}}
    assert f"not one release: {'a' * 12} on 3, none on 1" in told({**known, **away})[1]
    silent = {**known, "s": {"state": "unreadable", "why": "could not be looked at"}}
    assert f"not one release: {'a' * 12} on 3, unknown on 1" in told(silent)[1]


def test_a_dry_run_says_that_one_host_would_hold_the_others(told, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pyinfra", "--dry", "inventories/prod.py", "tasks/rollback.py"])
    known = {"a": {"state": "would change", "why": "to 0"}, "b": {"state": "failed", "why": "nowhere to go"}}
    good, said = told(known, plan=lambda: [["a", "b"]])
    assert not good and "a: would be held: b first" in said and "0 of 2 as asked" in said
    report.record("b", state="would change", why="to 0")
    assert told(known | {"b": {"state": "would change"}}, plan=lambda: [["a", "b"]])[0]


def test_what_the_lock_in_git_says_is_told_where_hosts_serve_something_else(told):
    known = {name: {"state": "in order", "release": "a" * 64} for name in "ab"}
    away = {"x": {"state": "out of service", "release": None}}
    assert f"the lock in git: release {'b' * 12}, on 0 of 2\n" in told({**known, **away}, locked="b" * 64)[1]
    assert "the lock in git" not in told({**known, **away}, locked="a" * 64)[1]
    assert "the lock in git" not in told(known)[1] and "other settings" not in told(known)[1]
    known["b"]["other_settings"] = True
    assert "other settings than in git: b\n" in told(known, locked="a" * 64)[1]


def test_what_a_rollback_could_be_asked_for_is_told_once_for_all_hosts(told):
    known = {name: {"state": "in order", "kept": ["b" * 64], "previous": None} for name in "de"}
    known["d"]["previous"] = "b" * 64
    assert f"also there: release {'b' * 12} on d (its previous), e\n" in told(known)[1]


def test_a_lease_is_told_once_for_all_hosts_that_it_holds(told):
    known = {name: {"state": "in order", "lease": f"x1 of eve, deploy since {name}"} for name in "ab"}
    assert "held by lease x1 of eve, deploy since a: a, b" in told({**known, "c": {"state": "in order"}})[1]
