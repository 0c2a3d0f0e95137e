"""The report as data: every field is described, and what stands in the file is the fields and nothing else."""

from __future__ import annotations

from dataclasses import fields

from tasks.control.host_run import HostReport
from tasks.control.reporting import document as reports
from tasks.control.reporting.clock import stamp
from tasks.control.reporting.document import Document
from tests.unit.control.reporting.test_page import document


def test_the_manual_has_every_field_once_with_what_it_is():
    lines = reports.table().splitlines()
    for kind in (Document, HostReport):
        for field in fields(kind):
            assert f"| `{field.name}` | {field.metadata['doc']} |" in lines and field.metadata["doc"]
    assert len([line for line in lines if line.startswith("| `")]) == len(fields(Document)) + len(fields(HostReport))


def test_the_file_has_exactly_those_fields():
    written = document().as_json()
    assert set(written) == {field.name for field in fields(Document)}
    assert set(written["hosts"]["a"]) == {field.name for field in fields(HostReport)}
    assert written["hosts"]["a"]["phases"][0] == {"phase": "stage", "start": 1.79e9, "end": 1.79e9 + 4, "ok": True}


def test_times_are_utc():
    assert stamp(0) == "1970-01-01T00:00:00Z"
