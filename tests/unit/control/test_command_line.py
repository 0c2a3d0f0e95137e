"""The command line: what was asked for, what to run next, and no secret of it anywhere."""

from __future__ import annotations

import shlex

import pytest

from tasks.control.command_line import CommandLine, printable, redacted, shown_hosts
from tasks.control.opening import FOR_ONE_COMMAND

LINE = CommandLine(("-y", "inventories/prod.py", "deploy.py"))


@pytest.mark.parametrize(
    ("words", "commands", "inventory"),
    [
        (("-y", "inventories/prod.py", "deploy.py"), ["deploy.py"], "inventories/prod.py"),
        (("-y", "my.py", "./tasks/status.py"), ["tasks/status.py"], "my.py"),
        (("@local", "deploy.py"), ["deploy.py"], "INVENTORY"),
        (("--debug-inventory", "inventories/prod.py"), [], "inventories/prod.py"),
        ((), [], "INVENTORY"),
    ],
)
def test_inventory_and_commands_are_told_apart(words, commands, inventory):
    line = CommandLine(words)
    assert line.commands == commands and line.inventory == inventory


def test_limits_are_read_in_both_spellings():
    line = CommandLine(("i.py", "deploy.py", "--limit", "gpu-1", "--exclude=gpu-2", "--limit"))
    assert line.limits() == [("--limit", "gpu-1"), ("--exclude", "gpu-2"), ("--limit", "")]
    assert line.has_limit and not LINE.has_limit and LINE.limits() == []


def test_the_same_again_is_not_dry_and_asks_nothing():
    line = CommandLine(("--dry", "inventories/prod.py", "deploy.py", "--data", "a=b c"))
    assert line.dry and not LINE.dry
    assert line.again() == "pyinfra -y inventories/prod.py deploy.py --data 'a=b c'"
    assert CommandLine(("-y", "i.py", "--yes", "deploy.py")).again() == "pyinfra -y i.py deploy.py"


# ------------------------------------------------------------------------------------------------------ what comes next


@pytest.mark.parametrize(
    "command", ["deploy.py", *sorted(set(FOR_ONE_COMMAND.values()) - {"deploy.py"}), "tasks/status.py"]
)
def test_every_command_behind_next_can_be_pasted(command):
    said = LINE.complete(f"x: {command} is not right. Next: {command} --data a=1, or {command}; then the same again")
    before, _, fix = said.partition("Next: ")
    assert before == f"x: {command} is not right. ", "what happened is told as it is"
    assert fix == (
        f"pyinfra -y inventories/prod.py {command} --data a=1, or pyinfra -y inventories/prod.py {command};"
        " then the same again"
    )
    assert shlex.split(fix.partition(",")[0])[:4] == ["pyinfra", "-y", "inventories/prod.py", command]


@pytest.mark.parametrize(
    "whole",
    [
        "x. Next: pyinfra -y i.py deploy.py",
        "x. Next: pyinfra -y INVENTORY tasks/lock.py",
        "x. Next: look at group_data/tasks/x.py",
        "x. Next: python3 my-deploy.py",
        "deploy.py of somebody",
    ],
)
def test_what_can_be_pasted_already_or_is_not_ours_stays_as_it_is(whole):
    assert LINE.complete(whole) == whole


def test_a_run_without_an_inventory_names_none():
    assert CommandLine(()).complete("x. Next: deploy.py") == "x. Next: pyinfra -y INVENTORY deploy.py"


# -------------------------------------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--ssh-password", "hunter2", "deploy.py"], ["--ssh-password", "…", "deploy.py"]),
        (["--ssh-key-password=hunter3", "x.py"], ["--ssh-key-password=…", "x.py"]),
        (["--password", "hunter4"], ["--password", "…"]),
        (["--key-password=hunter5"], ["--key-password=…"]),
        (["--data", "ssh_password=hunter6"], ["--data", "ssh_password=…"]),
        (["--data=_sudo_password=hunter7"], ["--data=_sudo_password=…"]),
        (["--data", "HF_TOKEN=hunter8"], ["--data", "HF_TOKEN=…"]),
        (["--data", "client_secret_2=hunter9"], ["--data", "client_secret_2=…"]),
        (["--data", "soak=3", "--ssh-password-prompt", "x.py"], ["--data", "soak=3", "--ssh-password-prompt", "x.py"]),
    ],
)
def test_no_secret_of_the_command_line_is_reported(words, shown):
    assert redacted(words) == shown
    line = CommandLine(tuple(words))
    assert "hunter" not in line.text() and "hunter" not in line.again()


def test_the_search_for_secrets_finds_a_planted_one():
    assert "hunter" in CommandLine(("--data", "note=hunter1")).text()


# -------------------------------------------------------------------------------------------------------- for terminals


def test_nothing_in_a_text_steers_a_terminal():
    assert printable("is \033[31mred\007\nnow") == "is ?[31mred??now"
    assert printable("facturé → gut") == "facturé → gut"


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, ""), (1, "g0"), (3, "g0, g1, g2"), (4, "g0 … g3 (4 hosts)"), (400, "g0 … g399 (400 hosts)")],
)
def test_many_hosts_are_named_in_few_words(count, shown):
    assert shown_hosts([f"g{number}" for number in range(count)]) == shown
