"""The table in the end, and the lines that are about many hosts."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from tasks.control.host_run import HostReport
from tasks.control.reporting import table
from tasks.control.rules.states import State
from tests.unit.control.reporting.test_page import document

OLD, NEW = "a" * 64, "b" * 64


def row(state=State.IN_SYNC, **more):
    fixed = {"role": "gpu", "state": state.label, "good": state.good, "not_readmitted": False, "why": ""}
    return HostReport(**{**fixed, **more})


@pytest.fixture
def said(capsys):
    def show(hosts, columns=table.STATUS, **more):
        table.show(document(hosts, **{"plan": [], **more}), columns, "reports/last.json")
        return capsys.readouterr().err

    return show


def test_a_change_of_the_embedding_space_is_told_once_for_all_hosts(said):
    known = {name: row(from_space="old", to_space="new", space="old") for name in "ab"}
    known["a"] = replace(known["a"], space="new")
    known |= {"c": row(from_space="new", to_space="new"), "d": row(from_space="none", to_space="new")}
    assert said(known).count("embedding space: old -> new on 2 hosts, 1 moved;") == 1


def test_a_fleet_on_two_releases_is_told_though_each_host_is_in_sync(said):
    known = {name: row(release=OLD) for name in "abc"}
    assert "not one release" not in said(known)
    away = {"x": row(State.OUT_OF_SERVICE), "d": row(State.EMPTY)}
    assert f"not one release: {'a' * 12} on 3, none on 1" in said({**known, **away})
    for state in (State.UNREADABLE, State.UNREACHABLE):
        silent = {**known, "s": row(state, why="could not be inspected")}
        assert f"not one release: {'a' * 12} on 3, unknown on 1" in said(silent)


def test_what_the_lock_in_git_says_is_told_where_hosts_serve_something_else(said):
    known = {name: row(release=OLD) for name in "ab"}
    away = {"x": row(State.OUT_OF_SERVICE)}
    assert f"the lock in git: release {'b' * 12}, on 0 of 2\n" in said({**known, **away}, lock_in_git=NEW)
    assert "the lock in git" not in said({**known, **away}, lock_in_git=OLD)
    assert "the lock in git" not in said(known) and "other settings" not in said(known)
    known["b"] = replace(known["b"], other_settings=True)
    assert "other settings than in git: b\n" in said(known, lock_in_git=OLD)


def test_what_a_rollback_could_be_asked_for_is_told_once_for_all_hosts(said):
    known = {"d": row(kept=[NEW], previous=NEW), "e": row(kept=[NEW])}
    assert f"also there: release {'b' * 12} on d (its previous), e\n" in said(known)


def test_a_lease_is_told_once_for_all_hosts_that_it_holds(said):
    known = {name: row(lease=f"x1 of eve, deploy since {name}") for name in "ab"}
    assert "held by lease x1 of eve, deploy since a: a, b" in said({**known, "c": row()})


def test_lines_about_the_fleet_stand_below_tasks_status_alone(said):
    known = {"a": row(release=OLD, lease="x1 of eve"), "b": row(release=NEW)}
    assert "not one release" in said(known) and "held by lease" in said(known)
    assert "not one release" not in said(known, table.DEPLOY) and "held by lease" not in said(known, table.DEPLOY)


def test_a_dry_run_shows_the_waves(said):
    known = {name: row(State.WOULD_CHANGE) for name in "abc"}
    assert "wave 1: a\nwave 2: b, c\n" in said(known, table.DEPLOY, dry=True, plan=[["a"], ["b", "c"]])
    assert "wave 1" not in said(known, table.DEPLOY, plan=[["a"], ["b", "c"]])


def test_a_reason_that_many_hosts_have_is_told_once_and_bad_ones_last(said):
    known = {f"g{number}": row(State.FAILED, why="no route") for number in range(5)}
    known["z"] = row(State.UP_TO_DATE, why="no container engine here")
    words = said(known)
    assert words.count("no route") == 1 and "g0 … g4 (5 hosts): no route" in words
    assert words.index("z: no container engine here") < words.index("no route")


def test_a_bad_host_without_a_reason_is_named_all_the_same(said):
    assert "\na: \n" in said({"a": row(State.FROZEN)}) and "\nb: " not in said({"b": row()})


@pytest.mark.parametrize(
    ("columns", "fields", "shown"),
    [
        (table.DEPLOY, {"moved_bytes": 0, "total_bytes": 1800}, ["0 B", "1.8 kB"]),
        (table.DEPLOY, {"cosine": 0.99999, "latency_ms": 12.4, "outbound_attempts": 0}, ["0.99999", "12 ms", "0"]),
        (table.STATUS, {"gpu": "2 x H100", "disk_free_bytes": 10**12, "container": "healthy"}, ["H100", "1.0 TB"]),
        (table.VERIFY, {"hashed_bytes": 1500}, ["1.5 kB"]),
        (table.PRUNE, {"freed_bytes": 1, "docker_freed_bytes": 2000}, ["1 B", "2.0 kB"]),
        (table.BUNDLE, {"bundle_bytes": 1, "bundle_parts": 7, "written_bytes": 3000}, ["1 B", "7", "3.0 kB"]),
        (table.CONTENTS, {"blob_count": 3, "hashed_bytes": 1500}, ["3", "1.5 kB"]),
    ],
)
def test_each_commands_table_shows_its_numbers_and_unknown_is_no_zero(columns, fields, shown):
    cells = [column.cell(row(**fields)) for column in columns]
    for each in shown:
        assert any(each in cell for cell in cells), (each, cells)
    unknown = [column.cell(row()) for column in columns[1:]]
    assert unknown == ["-"] * len(unknown)


def test_a_host_that_was_not_readmitted_shows_it_beside_its_state():
    assert table.state_cell(row(State.ACTIVE)) == "active"
    assert table.state_cell(row(State.ACTIVE, not_readmitted=True)) == "active, not readmitted"


def test_the_table_goes_where_errors_go(said, capsys):
    said({"a": row()})
    assert capsys.readouterr().out == "" and sys.stderr is not None


def test_a_command_to_paste_is_printed_as_it_was_typed(said):
    """Rich would make an emoji of `:x:`."""
    command = "pyinfra -y inventories/prod.py deploy.py --data image=docker-daemon:x:1"
    assert command in said({"a": row()}, retry=command)
