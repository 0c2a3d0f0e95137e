"""The page for the change ticket: everything in one file, nothing loaded, the same report the same page."""

from __future__ import annotations

import json
import os
import pwd
import re

import pytest

from tasks.control.reporting import page
from tasks.control.reporting import recorder as report

START = 1_790_000_000.0


def row(state="active", why="", **more):
    phases = [{"phase": "stage", "start": START, "end": START + 4, "ok": True}]
    phases.append({"phase": "activate", "start": START + 5, "end": START + 8, "ok": state == "active"})
    empty = dict.fromkeys(report.FIELDS)
    known = {"release": "f" * 64, "total_bytes": 2_000_000, "moved_bytes": 500_000, "cosine": 1.0, "phases": phases}
    return {**empty, **known, "role": "gpu", "state": state, "why": why, **more}


DOCUMENT = {
    "format": report.FORMAT,
    "command": "pyinfra -y inventories/prod.py deploy.py",
    "who": "op@desk",
    "started": "2026-11-24T12:00:00Z",
    "ended": "2026-11-24T12:00:09Z",
    "seconds": 9.0,
    "release": "f" * 64,
    "dry": False,
    "verdict": "failed",
    "plan": [["a"], ["b"]],
    "costs": {"bake": {"image": 7_000_000, "model_change": 3_000_000, "code_change": 12_000}},
    "contents": {"models": {"docai/one": "c" * 40}, "image": "docai/backend:1.0", "digest": "sha256:" + "d" * 64},
    "hosts": {"a": row(), "b": row("withdrawn", "it <b>broke</b>")},
    "retry": "pyinfra -y inventories/prod.py deploy.py",
}


def test_the_page_tells_it_all():
    words = page.html(DOCUMENT, report.GOOD)
    for word in (
        "failed",
        "op@desk",
        "a (wave 1)",
        "b (wave 2)",
        "withdrawn",
        "500.0 kB moved",
        "3.0 s ✗",
        "f" * 12,
        "c" * 40,
        "sha256:" + "d" * 64,
    ):
        assert word in words, word
    assert "it &lt;b&gt;broke&lt;/b&gt;" in words and "<b>broke" not in words


def test_a_host_that_was_held_is_told_apart_from_one_that_went_back():
    rows = {
        "a": row("withdrawn", "it broke", release="e" * 64),
        "b": row("held", "held: a not confirmed", release=None),
    }
    rows["b"]["phases"] = []
    words = page.html({**DOCUMENT, "hosts": rows}, report.GOOD)
    assert [(wave["held"], wave["failed"]) for wave in page.waves({**DOCUMENT, "hosts": rows})] == [
        ([], ["a"]),
        (["b"], []),
    ]
    rows["a"] |= {"served_cosine": 0.98765, "changes": "environment: A"}
    words = page.html({**DOCUMENT, "hosts": rows}, report.GOOD)
    assert "0.98765" in words and "the same release; changes environment: A" in words
    assert f'<td class="bad">withdrawn</td><td><code>{"e" * 12}</code></td>' in words


def test_what_failed_stands_at_the_top_and_what_it_would_cost_only_where_it_worked():
    words = page.html(DOCUMENT, report.GOOD)
    assert words.index("b: withdrawn: it") < words.index("Plan and actual") and "7.0 MB" not in words
    once = page.html({**DOCUMENT, "hosts": {"b": row("withdrawn", "withdrawn: a failed")}}, report.GOOD)
    assert "b: withdrawn: a failed" in once and "withdrawn: withdrawn" not in once
    good = page.html({**DOCUMENT, "verdict": "ok", "hosts": {"a": row()}}, report.GOOD)
    assert "7.0 MB" in good and "12.0 kB" in good


@pytest.mark.parametrize(
    ("state", "colour"), [("active", "good"), ("unsigned", "bad"), ("withdrawn, not readmitted", "bad")]
)
def test_a_state_is_green_only_if_it_is_a_good_one(state, colour):
    words = page.html({**DOCUMENT, "hosts": {"a": row(state)}}, report.GOOD)
    assert f'<td class="{colour}">{state}</td>' in words


def test_the_page_needs_nothing_from_anywhere():
    words = page.html(DOCUMENT, report.GOOD)
    assert "<script" not in words and "<link" not in words and "@import" not in words
    addresses = set(re.findall(r"https?://[^\"'<> ]+", words))
    assert all(
        address.startswith(("http://www.w3.org", "http://purl.org", "http://creativecommons.org"))
        for address in addresses
    )


def test_the_same_report_gives_the_same_page():
    assert page.html(DOCUMENT, report.GOOD) == page.html(DOCUMENT, report.GOOD)


def test_a_run_that_ended_before_it_began_has_a_page_too():
    empty = {name: {**dict.fromkeys(report.FIELDS), "role": "gpu", "state": "unfit", "why": "x"} for name in "ab"}
    assert "<svg" not in page.html({**DOCUMENT, "hosts": empty}, report.GOOD)


def test_runs_that_end_in_the_same_second_keep_a_ticket_each(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    ours, theirs = ({**DOCUMENT, "who": who} for who in ("op@desk", "eve@desk"))
    first, second = (report.save(document, True) for document in (ours, theirs))
    assert first == f"reports/2026-11-24T120000Z-{'f' * 12}.html" and second == first.replace(".html", "-2.html")
    for name, document in ((first, ours), (second, theirs)):
        page_of = tmp_path / name.removeprefix("reports/")
        assert json.loads(page_of.with_suffix(".json").read_text()) == document
        assert document["who"] in page_of.read_text()
    assert json.loads((tmp_path / "last.json").read_text()) == theirs
    assert len(list(tmp_path.iterdir())) == 5, "nothing staged is left"


def test_who_is_the_person_whatever_the_environment_says(monkeypatch):
    for name in ("SUDO_USER", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    host = os.uname().nodename
    assert report.who() == f"{pwd.getpwuid(os.getuid()).pw_name}@{host}"
    monkeypatch.setenv("USER", "root")
    monkeypatch.setenv("SUDO_USER", "alice")
    assert report.who() == f"alice@{host}"
    monkeypatch.delenv("SUDO_USER")
    monkeypatch.delenv("USER")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    assert report.who() == f"uid {os.getuid()}@{host}"
