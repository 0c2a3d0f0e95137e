"""What the README says of settings is what the code has."""

from __future__ import annotations

from pathlib import Path

from tasks.control import settings
from tasks.control.reporting import recorder as report

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_table_of_settings_is_the_codes():
    assert settings.table() in README


def test_every_bad_state_is_explained():
    bad = ("unfit", "held", "unreachable", "failed", "not proven", "withdrawn", "frozen", "incomplete", "drifted")
    for state in (*bad, "unsigned", "damaged", "unreadable", "not withdrawn", "active, not readmitted"):
        assert f"| `{state}`" in README and state not in report.GOOD
