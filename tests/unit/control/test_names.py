"""Who runs this, which version, and which commands there are."""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path

from tasks import VERSION
from tasks.control import commands, version
from tasks.control.who import who

ROOT = Path(__file__).parents[3]


def test_who_is_the_person_whatever_the_environment_says(monkeypatch):
    for name in ("SUDO_USER", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    host = os.uname().nodename
    assert who() == f"{pwd.getpwuid(os.getuid()).pw_name}@{host}"
    monkeypatch.setenv("USER", "root")
    monkeypatch.setenv("SUDO_USER", "alice")
    assert who() == f"alice@{host}"
    monkeypatch.delenv("SUDO_USER")
    monkeypatch.delenv("USER")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    assert who() == f"uid {os.getuid()}@{host}"


def test_the_version_names_the_commit_also_in_an_archive_and_without_git(monkeypatch):
    assert re.fullmatch(rf"{re.escape(VERSION)} \(.+\)", version.version())
    monkeypatch.setattr(version, "COMMIT", "1a2b3c4")
    assert version.commit() == "1a2b3c4"
    monkeypatch.setattr(version, "COMMIT", "$Format:%h$")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert version.commit() == "no git"


def test_git_writes_the_commit_into_an_archive_of_that_file():
    assert "tasks/control/version.py export-subst" in (ROOT / ".gitattributes").read_text()
    assert 'COMMIT = "$Format:%h$"' in (ROOT / "tasks/control/version.py").read_text()


def test_help_lists_every_command_with_its_first_line(capsys):
    found = commands.commands()
    scripts = {f"tasks/{path.name}" for path in (ROOT / "tasks").glob("*.py")} - {"tasks/__init__.py"}
    assert set(found) == {"deploy.py", *scripts} and all(found.values())
    assert found["tasks/unlock.py"] == "End a rollout's lease whose holder cannot end it"
    commands.show()
    said = capsys.readouterr().out
    assert said.startswith(f"hf-offline {VERSION}") and "tasks/prune.py" in said
