"""The zip of remote programs is its content; a call gives an answer or says why there is none, and never raises."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile

import pytest
from pyinfra.connectors.util import CommandOutput, OutputLine

from tasks.control.rules.states import State
from tasks.control.tool import (
    Tool,
    call,
    command,
    ensure_tool,
    expect,
    fail,
    guarded,
    options,
    probe_document,
    put_file,
    service_options,
    sources,
    wrong_in,
)
from tasks.shared.errors import Refused
from tests.unit.control.facts import changed
from tests.unit.control.harness import make_lab


@pytest.fixture
def lab(settings, lock):
    return make_lab(settings, lock)


@pytest.fixture
def me(lab):
    return lab.run.hosts["gpu1"]


class Other(Tool):
    """The tool of other sources."""

    data = b"other programs"  # type: ignore[assignment]


def test_the_tool_is_its_content():
    tool = Tool()
    assert tool.name == f"tool-{hashlib.sha256(tool.data).hexdigest()[:12]}.pyz"
    assert (Tool().name, Tool().data) == (tool.name, tool.data), "the same sources give the same bytes"
    assert Other().name != tool.name
    assert tool.path("/srv/models") == f"/srv/models/tool/{tool.name}"


def test_the_tool_holds_what_runs_elsewhere_and_what_is_shared_and_nothing_of_ours():
    names = set(zipfile.ZipFile(io.BytesIO(Tool().data)).namelist())
    assert names == set(sources())
    assert {"__main__.py", "tasks/shared/lock.py", "tasks/remote/common/files.py"} <= names
    assert not any(name.startswith("tasks/control") or "requirements" in name for name in names)


def test_keywords_become_options():
    assert options(store="/s", from_="x", dry_run=True, no=False, none=None, file=["a", "b"], within=3) == [
        *("--store", "/s", "--from", "x", "--dry-run", "--file", "a", "--file", "b", "--within", "3")
    ]


def test_every_word_of_a_command_is_quoted(lab, me):
    words = command(lab.run, me, "switch", "check", "--name", "a; rm -rf / $(id)").get_raw_value()
    assert words.endswith("switch check --name 'a; rm -rf / $(id)'")


# ---------------------------------------------------------------------------------------------------------------- calls


def ask(lab, answer, *program, **more):
    lab.target("gpu1").answers[("store", "verify")] = answer
    with lab.on("gpu1"):
        return call(lab.run, lab.run.hosts["gpu1"], "store", "verify", **more)


def test_a_call_sends_its_document_and_is_bounded_there_and_here(lab):
    assert ask(lab, {"ok": True, "bytes": 3}, document={"a": 1}, deadline=60, sample=5) == {"ok": True, "bytes": 3}
    heard = lab.target("gpu1").call("store", "verify")
    assert heard.document == {"a": 1} and heard.options == {"store": "/srv/models", "sample": "5"}
    assert heard.timeout > 60 + 30 and heard.python == "python3"


def test_a_hosts_own_no_is_its_answer(lab):
    no = {"ok": False, "error": {"where": "x", "what": "is frozen"}}
    assert ask(lab, no) == no
    with pytest.raises(Refused, match="x: is frozen"):
        expect(no)


def test_a_call_without_an_answer_says_so_with_the_last_words(lab):
    answer = ask(lab, None)
    assert answer["ok"] is False and answer["answered"] is False
    assert answer["error"]["what"] == "`store verify` gave no answer" and answer["error"]["found"] == "connection lost"


def test_a_program_that_fails_after_its_answer_did_not_succeed(lab):
    lab.target("gpu1").run_shell_command = lambda *words, **more: (
        False,
        CommandOutput([OutputLine("stdout", json.dumps({"ok": True}))]),
    )
    with lab.on("gpu1"):
        answer = call(lab.run, lab.run.hosts["gpu1"], "store", "verify")
    assert answer["ok"] is False and "failed after its answer" in answer["error"]["what"]


def test_a_no_without_words_is_a_refusal_all_the_same():
    with pytest.raises(Refused):
        expect({"ok": False})
    with pytest.raises(Refused):
        expect({})
    assert expect({"ok": True, "a": 1})["a"] == 1


# ---------------------------------------------------------------------------------------------------------------- files


def test_a_small_file_is_checked_by_its_digest_and_renamed(lab, me):
    with lab.on("gpu1") as target:
        assert put_file(lab.run, me, "/srv/models/x y", b"words")
    ((staged, data),) = target.files.items()
    (words,) = target.shell_words
    assert data == b"words" and staged.startswith("/srv/models/x y.") and staged != "/srv/models/x y"
    assert hashlib.sha256(b"words").hexdigest() in words and words.endswith(f"mv -T -- '{staged}' '/srv/models/x y'")


def test_a_file_that_arrives_damaged_or_not_at_all_is_no_success(lab, me):
    with lab.on("gpu1") as target:
        target.shell["sha256sum"] = False
        assert not put_file(lab.run, me, "/x", b"words")
        target.shell, target.disk_full = {}, True
        assert not put_file(lab.run, me, "/x", b"words")


def test_the_tool_is_brought_once_a_run(lab, me):
    me.tools = []
    with lab.on("gpu1") as target:
        ensure_tool(lab.run, me)
        assert list(target.files.values()) == [lab.run.tool.data] and lab.run.tool.name in me.tools
        assert "bytecode --to" in target.shell_words[-1]
        ensure_tool(lab.run, me)
        assert len(target.shell_words) == 3 and len(target.files) == 1


@pytest.mark.parametrize("word", ["mkdir", "sha256sum", "bytecode"])
def test_a_tool_that_cannot_be_written_is_a_refusal(lab, me, word):
    me.tools = []
    with lab.on("gpu1") as target:
        target.shell[word] = False
        with pytest.raises(Refused, match="gpu1: cannot write the tool"):
            ensure_tool(lab.run, me)
    assert me.tools == []


def test_a_host_that_was_not_inspected_is_refused_in_words(lab, me):
    me.facts = None
    with pytest.raises(Refused, match="gpu1: could not be inspected"):
        ensure_tool(lab.run, me)
    with pytest.raises(Refused, match="gpu1: could not be inspected"):
        service_options(me)


# ------------------------------------------------------------------------------------------------------ words for hosts


def test_which_service_of_which_stack_is_told_as_the_host_has_it(me, settings):
    assert service_options(me) == {
        "stack": "/srv/docai",
        "override": "docker-compose.override.yml",
        "project": "docai",
        "service": "backend",
    }
    me.settings = settings.model_copy(update={"project": "ours"})
    me.facts = changed(me.facts, "stack.override", "compose.override.yaml")
    assert service_options(me)["project"] == "ours" and service_options(me)["override"] == "compose.override.yaml"


def test_a_probe_is_told_as_the_operator_wrote_it(me, values):
    from tasks.control.settings_layers import read_settings

    assert probe_document(me) is None
    probe = {"url": "http://x", "body": {"q": "{query}"}, "answer": "embedding", "at_least": 0.5}
    me.settings = read_settings([("x", {**values, "probe": probe})])
    assert probe_document(me) == probe


def test_everything_that_is_wrong_with_a_release_is_said():
    assert wrong_in({"damaged": {"a": {"what": "layer 0"}}, "wrong": ["lock.json"], "missing": ["b"]}) == [
        *("layer 0", "lock.json", "b")
    ]


# -------------------------------------------------------------------------------------------------------------- guarded


def perform(lab, me, work, **more):
    with lab.on("gpu1") as target:
        return guarded(me, work, **more).execute(lab.state, target, {})


def refuse():
    raise Refused("here", "is wrong", next="deploy.py")


def test_a_refusal_fails_its_host_alone_in_one_line_that_can_be_pasted(lab, me):
    assert not perform(lab, me, refuse, phase="stage")
    assert (me.state, me.why) == (State.FAILED, "here: is wrong. Next: pyinfra -y inventories/prod.py deploy.py")
    assert lab.target("gpu1").said == [me.why]
    assert [(phase.phase, phase.ok) for phase in me.report.phases] == [("stage", False)]


def test_what_goes_well_is_a_good_phase(lab, me):
    assert perform(lab, me, lambda: True, phase="stage")
    assert [(phase.phase, phase.ok) for phase in me.report.phases] == [("stage", True)]


def test_a_phase_that_ends_in_the_state_that_it_is_for_is_a_good_one_though_its_host_failed(lab, me):
    def withdrawn():
        return fail(me, "withdrawn: others failed", State.WITHDRAWN)

    assert not perform(lab, me, withdrawn, phase="withdraw", good=State.WITHDRAWN)
    assert not perform(lab, me, withdrawn, phase="withdraw", good=State.ACTIVE)
    assert [phase.ok for phase in me.report.phases] == [True, False]


def test_a_host_that_regressed_is_no_failure_to_pyinfra_until_it_was_taken_back(lab, me):
    me.regressed = True
    assert perform(lab, me, refuse, phase="recheck")
    assert [phase.ok for phase in me.report.phases] == [False]
    me.taken_back = True
    assert not perform(lab, me, refuse, phase="withdraw")
