"""The page for the change ticket: everything in one file, nothing loaded, the same report the same page."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from tasks.control.host_run import HostReport, Phase
from tasks.control.reporting import page
from tasks.control.reporting.document import FORMAT, Document
from tasks.control.reporting.recorder import FOLDER, save
from tasks.control.rules.states import State

START = 1_790_000_000.0
RELEASE = "f" * 64


def row(state: State = State.ACTIVE, why: str = "", **more) -> HostReport:
    phases = [
        Phase("stage", START, START + 4, True),
        Phase("activate", START + 5, START + 8, state is State.ACTIVE),
    ]
    known = {"release": RELEASE, "total_bytes": 2_000_000, "moved_bytes": 500_000, "cosine": 1.0, "phases": phases}
    fixed = {"role": "gpu", "state": state.label, "good": state.good, "not_readmitted": False, "why": why}
    return HostReport(**{**known, **fixed, **more})


def document(hosts=None, **changes) -> Document:
    whole = Document(
        format=FORMAT,
        version="0.1.0 (abc)",
        command="pyinfra -y inventories/prod.py deploy.py",
        who="op@desk",
        started="2026-11-24T12:00:00Z",
        ended="2026-11-24T12:00:09Z",
        seconds=9.0,
        release=RELEASE,
        dry=False,
        verdict="failed",
        hosts=hosts or {"a": row(), "b": row(State.WITHDRAWN, "it <b>broke</b>")},
        plan=[["a"], ["b"]],
        costs={"bake": {"image": 7_000_000, "model_change": 3_000_000, "code_change": 12_000}},
        lock_in_git=None,
        made_of={"models": {"docai/one": "c" * 40}, "image": "docai/backend:1.0", "digest": "sha256:" + "d" * 64},
        retry="pyinfra -y inventories/prod.py deploy.py",
    )
    return replace(whole, **changes)


def test_the_page_tells_it_all():
    words = page.html(document())
    for word in (
        "failed",
        "op@desk",
        "hf-offline 0.1.0 (abc)",
        "a (wave 1)",
        "b (wave 2)",
        "withdrawn",
        "500.0 kB moved",
        "3.0 s ✗",
        "f" * 12,
        "c" * 40,
        "sha256:" + "d" * 64,
        "run again, once fixed",
    ):
        assert word in words, word
    assert "it &lt;b&gt;broke&lt;/b&gt;" in words and "<b>broke" not in words


def test_a_change_of_space_is_noted():
    note = "embedding space: old -> new on 2 hosts, 1 moved"
    assert "old -&gt; new on 2 hosts" in page.html(document(), [note]) and "<dt>note" not in page.html(document())


def test_a_host_that_was_held_is_told_apart_from_one_that_went_back():
    rows = {
        "a": row(State.WITHDRAWN, "it broke", release="e" * 64, served_cosine=0.98765, changes="environment: A"),
        "b": row(State.HELD, "held: a not confirmed", release=None, phases=[]),
    }
    assert [(wave.held, wave.failed) for wave in page.waves(document(rows))] == [([], ["a"]), (["b"], [])]
    words = page.html(document(rows))
    assert "0.98765" in words and "the same release; changes environment: A" in words
    assert f'<td class="bad">withdrawn</td><td><code>{"e" * 12}</code></td>' in words
    assert "b: held" not in words.partition("Plan and actual")[0], "the reason is the other host's"


def test_plan_and_actual_are_told_by_wave():
    away = row(State.ACTIVE, "readmit failed", good=False, not_readmitted=True)
    rows = {"a": row(), "b": row(State.UNCHANGED), "c": away, "d": row(State.FAILED)}
    (wave,) = page.waves(document(rows, plan=[["a", "b", "c", "d", "gone"]]))
    assert (wave.switched, wave.unchanged, wave.held, wave.failed) == (["a"], ["b"], [], ["c", "d"])
    assert (wave.start, wave.end) == (START + 5, START + 8)
    (idle,) = page.waves(document({"a": row(State.HELD, phases=[])}, plan=[["a"]]))
    assert (idle.start, idle.end) == (None, None)


def test_what_failed_stands_at_the_top_and_what_it_would_cost_only_where_it_worked():
    words = page.html(document())
    assert words.index("b: withdrawn: it") < words.index("Plan and actual") and "7.0 MB" not in words
    once = page.html(document({"b": row(State.WITHDRAWN, "withdrawn: a failed")}))
    assert "b: withdrawn: a failed" in once and "withdrawn: withdrawn" not in once
    good = page.html(document({"a": row()}, verdict="ok"))
    assert "7.0 MB" in good and "12.0 kB" in good


@pytest.mark.parametrize(
    ("shown", "colour", "words"),
    [
        (row(State.ACTIVE), "good", "active"),
        (row(State.UNSIGNED), "bad", "unsigned"),
        (row(State.WITHDRAWN, not_readmitted=True), "bad", "withdrawn, not readmitted"),
        (row(State.ACTIVE, good=False, not_readmitted=True), "bad", "active, not readmitted"),
    ],
)
def test_a_state_is_green_only_if_it_is_a_good_one(shown, colour, words):
    assert f'<td class="{colour}">{words}</td>' in page.html(document({"a": shown}))


# ------------------------------------------------------------------------------------------------------------ timeline


@pytest.mark.parametrize(("ok", "drawn_as_failed"), [(True, False), (False, True)])
def test_a_phase_that_failed_is_hatched_with_an_edge_and_a_good_one_is_neither(ok, drawn_as_failed):
    svg = page.timeline(document({"a": row(phases=[Phase("stage", START, START + 4, ok)])}))
    assert ("<pattern" in svg) is drawn_as_failed
    assert (page.BAD in svg) is drawn_as_failed
    assert page.COLOURS["stage"] in svg


def test_on_the_page_only_the_phase_that_failed_is_marked():
    phases = [Phase("stage", START, START + 4, True), Phase("activate", START + 5, START + 8, False)]
    words = page.html(document({"a": row(State.FAILED, phases=phases)}))
    assert "4.0 s</td>" in words and "3.0 s ✗</td>" in words and words.count("✗") == 1


def test_hosts_stand_in_the_order_of_their_waves_and_from_the_runs_begin():
    svg = page.timeline(document({"b": row(), "bastion": row(), "a": row()}, plan=[["a"], ["b"]]))
    assert svg.index("bastion") < svg.index("a (wave 1)") < svg.index("b (wave 2)")


def test_every_phase_has_a_colour_and_failed_is_none_of_them():
    assert page.BAD not in page.COLOURS.values()
    # the phases that operations name
    assert set(page.COLOURS) == {"lease", "fetch", "prove", "check", "stage", "activate", "recheck", "withdraw"}


def test_the_page_needs_nothing_from_anywhere():
    words = page.html(document())
    assert "<script" not in words and "<link" not in words and "@import" not in words
    addresses = set(re.findall(r"https?://[^\"'<> ]+", words))
    assert all(
        address.startswith(("http://www.w3.org", "http://purl.org", "http://creativecommons.org"))
        for address in addresses
    )


def test_the_same_report_gives_the_same_page_and_another_does_not():
    assert page.html(document()) == page.html(document()) != page.html(document(who="eve@desk"))


def test_a_run_that_ended_before_it_began_has_a_page_too():
    empty = {name: row(State.UNFIT, "x", phases=[], total_bytes=None, cosine=None) for name in "ab"}
    words = page.html(document(empty))
    assert "<svg" not in words and "Plan and actual" in words
    assert "<svg" in page.html(document())


# -------------------------------------------------------------------------------------------------------------- ticket


def test_runs_that_end_in_the_same_second_keep_a_ticket_each(desk):
    ours, theirs = document(), document(who="eve@desk")
    first, second = (save(each, True) for each in (ours, theirs))
    assert first == f"reports/2026-11-24T120000Z-{'f' * 12}.html" and second == first.replace(".html", "-2.html")
    for name, who in ((first, "op@desk"), (second, "eve@desk")):
        written = json.loads((desk / name).with_suffix(".json").read_text())
        assert (written["who"], written["hosts"]["b"]["state"], written["format"]) == (who, "withdrawn", FORMAT)
        assert who in (desk / name).read_text()
    assert json.loads((desk / FOLDER / "last.json").read_text())["who"] == "eve@desk"
    assert len(list((desk / FOLDER).iterdir())) == 5, "nothing staged is left"


def test_what_is_no_rollout_gets_no_ticket(desk):
    assert save(document(), False) == "reports/last.json"
    assert [each.name for each in (desk / FOLDER).iterdir()] == ["last.json"]
