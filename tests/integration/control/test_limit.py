"""pyinfra as it is typed, with no host to be reached."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[3]
PYINFRA = Path(sys.executable).with_name("pyinfra")


def said(*words: str) -> tuple[int, str]:
    done = subprocess.run([PYINFRA, *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("task", ["deploy.py", "tasks/status.py"])
def test_a_limit_that_matches_no_host_is_no_success(task):
    code, text = said("-y", "inventories/prod.py", task, "--limit", "gpu-99")
    assert code == 1 and f"{task}: was not run for any host" in text


@pytest.fixture
def here(tmp_path):
    """An inventory whose bastion is this machine, and whose GPU host is down."""
    values = {"lock": "none", "models": [{"repo": "a/b", "revision": "main"}], "image": "docker-daemon:x:1"}
    values |= {"model_store": str(tmp_path / "store")}
    data = {**values, "ssh_hostname": "127.0.0.1", "ssh_port": 1}
    (tmp_path / "here.py").write_text(f'bastion = [("@local", {values})]\ngpu_hosts = [("gpu-1", {data})]\n')
    return str(tmp_path / "here.py")


@pytest.mark.parametrize("task", ["deploy.py", "tasks/status.py"])
def test_a_fleet_that_cannot_be_reached_at_all_gets_its_table(here, task):
    code, text = said("-y", here, task, "--limit", "gpu-1")
    assert code == 1 and "unreachable" in text and "0 of 1 hosts ok" in text and "raceback" not in text, text
    assert json.loads((ROOT / "reports/last.json").read_text())["hosts"]["gpu-1"]["state"] == "unreachable"


def test_a_host_is_no_inventory():
    code, text = said("-y", "lab-gpu1", "deploy.py")
    assert code == 1 and "there is no such inventory" in text and "inventories/prod.py" in text


def test_an_inventory_that_is_misspelt_is_no_host_to_connect_to():
    code, text = said("-y", "inventories/prodd.py", "deploy.py")
    assert code == 1 and "there is no such inventory" in text and "inventories/prod.py" in text


@pytest.mark.parametrize("text", ["", "x = [\n", "import sys; sys.exit(0)\n"])
def test_an_inventory_without_hosts_is_no_success(tmp_path, text):
    """Empty, or broken: pyinfra shows where it is broken, and we add no traceback of ours."""
    file = tmp_path / "none.py"
    file.write_text(text)
    code, text = said("-y", str(file), "deploy.py")
    assert code == 1 and f"was not run for any host. Next: correct {file}" in text, text
    assert "callback_handlers" not in text, text


def test_two_commands_on_a_line_are_refused(here):
    code, text = said("-y", here, "tasks/contents.py", "tasks/prune.py")
    assert code == 1 and "one command at a time" in text and "raceback" not in text, text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--exclude", "gpu-99"], "--exclude gpu-99 matches no host"),
        (["--sudo"], '"_sudo": True'),
        (["--serial"], "would defeat the gates"),
        (["--data", "_ignore_errors=true"], "unknown key '_ignore_errors'"),
        (["--data", "release=ab"], "--data release is for tasks/rollback.py"),
        (["--data", "update=true"], "--data update is for tasks/lock.py"),
        (["--data", "out_of_service=yes"], "--data out_of_service would be every host's"),
        (["--data", "wave=2"], "--data wave would be every host's"),
    ],
)
def test_what_would_be_half_obeyed_is_refused(here, words, expected):
    code, text = said("-y", here, "tasks/status.py", *words)
    assert code == 1 and expected in text and "raceback" not in text, text


def test_a_release_that_is_empty_is_no_rollback_to_the_previous(here):
    """As of a variable that is not set."""
    code, text = said("-y", here, "tasks/rollback.py", "--data", "release=")
    assert code == 1 and "--data release is empty" in text and "raceback" not in text, text


def test_a_command_for_the_bastion_needs_it_and_nobody_else(here):
    code, text = said("-y", here, "tasks/contents.py")
    assert code == 0 and "1 of 1 hosts ok" in text, text
    code, text = said("-y", here, "./tasks/contents.py", "--limit", "gpu-99")
    assert code == 1 and "was not run for any host" in text, text


def test_what_is_not_ours_is_left_alone():
    assert said("inventories/prod.py", "debug-inventory")[0] == 0


def test_a_fleet_of_which_no_host_answers_has_its_table_and_report_too(tmp_path):
    """pyinfra ends before it loads any command."""
    data = {"ssh_hostname": "127.0.0.1", "ssh_port": 1}
    text = f'bastion = [("bastion-1", {data})]\ngpu_hosts = [("gpu-1", {data}), ("gpu-2", {{**{data}, "out_of_service": "fan"}})]\n'
    (tmp_path / "away.py").write_text(text)
    code, words = said("-y", str(tmp_path / "away.py"), "tasks/status.py")
    assert code == 1 and "0 of 3" not in words and "1 of 3 hosts ok" in words, words
    assert "gpu-1: no ssh connection: " in words and "gpu-2: out of service: fan" in words
    last = json.loads((ROOT / "reports/last.json").read_text())
    assert {name: row["state"] for name, row in last["hosts"].items()} == {
        "bastion-1": "unreachable",
        "gpu-1": "unreachable",
        "gpu-2": "out of service",
    }
