"""What tools read of the project: its version, and what a plain `pytest` runs."""

from __future__ import annotations

import re
from pathlib import Path

from tasks import VERSION
from tasks.control.version import version

ROOT = Path(__file__).parents[2]


def test_the_version_is_shown_with_its_commit():
    commit = r"[0-9a-f]{7,40}(\+changes)?|no git|no commit"
    assert re.fullmatch(rf"{re.escape(VERSION)} \(({commit})\)", version())


def test_the_changelog_has_this_version():
    assert f"## {VERSION}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("[", "").replace("]", "")


def test_a_plain_pytest_takes_no_lab_down(request):
    """The tests of the lab remove a running lab first, so they are run by name alone."""
    paths = [ROOT / path for path in request.config.getini("testpaths")]
    lab_tests = list((ROOT / "tests/e2e").glob("test_*.py"))
    assert paths and lab_tests and not any(path.is_relative_to(folder) for path in lab_tests for folder in paths)
