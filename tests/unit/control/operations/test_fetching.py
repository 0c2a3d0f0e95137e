"""On the bastion: only what the store lacks is fetched, the token goes one way alone, and what is proven becomes goldens."""

from __future__ import annotations

import json

import pytest
import yaml
from pyinfra.connectors.util import CommandOutput, OutputLine

from tasks.control.git.files import FOLDER
from tasks.control.git.lockfile import lock_path
from tasks.control.host_run import Evidence
from tasks.control.operations.fetching import PINS, export_image, fetch, prove, venv
from tasks.control.rules.states import State
from tasks.shared.errors import Refused
from tasks.shared.lock import lock_text
from tests.unit.control.facts import changed, drive
from tests.unit.control.harness import make_lab

EMBEDDINGS = {"class": "cpu/bfloat16", "queries": ["q"], "vectors": {"query0": {"shape": [1, 2], "f16": "AAAAAA=="}}}
SMOKED = {
    "ok": True,
    "cosine": None,
    "latency_ms": {"page": 12},
    "versions": {},
    "outbound_attempts": 0,
    "embeddings": EMBEDDINGS,
}
SIGNERS_LIST = [("/x", 0, 0o100644)]


@pytest.fixture
def lab(settings, lock, desk):
    (desk / FOLDER).mkdir(parents=True)
    lock_path(settings).write_text(lock_text(lock.document))
    lab = make_lab(settings, lock)
    image = {"manifest": {"digest": f"sha256:{lock.image.manifest.sha256}"}}
    lab.target("bastion").answers = {
        ("setup", ""): {"ok": True},
        ("signed", "keep"): {"ok": True},
        ("fetch", "download"): {"ok": True, "bytes": 30},
        ("export", "image"): {"ok": True, "image": image},
        ("bundle", "take"): {"ok": True, "bytes": 44},
        ("store", "admit"): {"ok": True},
        ("engine", "load"): {"ok": True},
        ("engine", "candidate"): {"ok": True, "folder": "/srv/models/state/x/candidate"},
        ("engine", "smoke"): SMOKED,
    }
    return lab


@pytest.fixture
def me(lab):
    return lab.run.bastion


@pytest.fixture
def target(lab):
    return lab.target("bastion")


def test_an_empty_bastion_gets_the_models_and_the_image(lab, me, target, lock):
    assert lab.perform("bastion", fetch).good
    assert target.heard() == ["setup", "signed keep", "fetch download", "export image"]
    assert me.state is State.UP_TO_DATE and me.report.moved_bytes == 30 + sum(lock.image_blobs().values())
    assert me.report.total_bytes == sum(lock.blobs().values()) and me.report.there_bytes == 0
    assert target.call("export", "image").options["name"] == "docai/backend:1.0"


def test_what_is_there_is_not_fetched(lab, me, target, lock):
    me.facts = changed(me.facts, "store.blobs", lock.model_blobs())
    assert lab.perform("bastion", fetch).good and "fetch download" not in target.heard()
    target.calls.clear()
    me.facts = changed(me.facts, "store.blobs", lock.image_blobs())
    assert lab.perform("bastion", fetch).good and target.heard() == ["setup", "signed keep", "fetch download"]
    target.calls.clear()
    me.facts = changed(me.facts, "store.blobs", lock.blobs())
    assert lab.perform("bastion", fetch).commands == 0 and target.heard() == []
    assert me.state is State.UP_TO_DATE and me.report.moved_bytes == 0


def test_a_bundle_needs_neither_the_hub_nor_the_image(lab, me, target, settings, lock):
    me.settings = settings.model_copy(update={"source": "bundle", "bundle": "/media/stick"})
    me.facts = changed(me.facts, "bundle", drive(lock.id))
    assert lab.perform("bastion", fetch).good
    assert target.heard() == ["setup", "signed keep", "bundle take"] and me.report.moved_bytes == 44
    heard = target.call("bundle", "take")
    assert heard.options["bundle"] == "/media/stick" and heard.document == lock.document


def test_the_token_goes_by_standard_input_alone(lab, me, target, settings, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    assert lab.perform("bastion", fetch).good
    everything = [*target.shell_words, *(str(data) for data in target.files.values()), *target.said]
    everything += [str(call) for call in target.calls if call.program != "fetch"]
    heard = target.call("fetch", "download")
    everything += [str(heard.options), json.dumps(me.why)]
    assert heard.document["token"] == "hf_planted" and heard.document["endpoint"] == "https://huggingface.co"
    assert not any("hf_planted" in text for text in everything)


@pytest.mark.parametrize(("xet", "told"), [("on", True), ("silent", True), ("off", False)])
def test_whether_xet_may_be_used_is_told(lab, me, target, settings, monkeypatch, xet, told):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    me.settings = settings.model_copy(update={"xet": xet})
    lab.perform("bastion", fetch)
    document = target.call("fetch", "download").document
    assert document["xet"] is told and document["token"] is None


def test_fetch_runs_in_an_environment_of_its_own_pins_and_ends_before_we_give_up(lab, me, target, settings):
    lab.perform("bastion", fetch)
    heard = target.call("fetch", "download")
    assert (
        heard.python == f"{venv(settings)}/bin/python" and heard.options["within"] == "14400" and heard.timeout > 14430
    )


def test_that_environment_is_built_once(lab, me, target, settings):
    lab.perform("bastion", fetch)
    assert not any("-m venv" in words for words in target.shell_words), "it was there whole"
    target.calls.clear()
    target.shell["test -e"] = False
    assert lab.perform("bastion", fetch).good
    (made,) = [words for words in target.shell_words if "-m venv" in words]
    assert made.endswith(f"touch {venv(settings)}/.whole"), "last of all"
    assert PINS.read_bytes() in target.files.values()


@pytest.mark.parametrize(
    ("word", "said"), [("pip", "cannot install huggingface_hub"), ("sha256sum", "cannot write the requirements")]
)
def test_an_environment_that_cannot_be_built_stops_the_bastion(lab, me, target, word, said):
    target.shell |= {"test -e": False, word: False}
    assert not lab.perform("bastion", fetch).good
    assert said in me.why and "fetch download" not in target.heard()


def test_an_image_that_moved_on_is_not_taken_for_the_locked_one(lab, me, target, lock):
    target.answers["export", "image"] = {"ok": True, "image": {"manifest": {"digest": "sha256:" + "0" * 64}}}
    assert not lab.perform("bastion", fetch).good
    assert "is another image by now" in me.why and "tasks/lock.py" in me.why
    with lab.on("bastion"):
        assert export_image(lab.run, me, None)["manifest"]["digest"] == "sha256:" + "0" * 64, "a new lock takes it"


def test_a_host_that_asks_for_better_signatures_stops_before_any_byte_moves(lab, me, target):
    target.answers["signed", "keep"] = {"ok": False, "error": {"where": "bastion", "what": "is not signed"}}
    assert not lab.perform("bastion", fetch).good and target.heard() == ["setup", "signed keep"]


def test_a_dry_run_fetches_nothing_and_says_how_much_it_would(lab, me, target, lock):
    lab.rehearse("bastion", fetch)
    assert me.state is State.WOULD_CHANGE and me.report.moved_bytes == sum(lock.blobs().values()) and target.calls == []


def test_an_unfit_bastion_fetches_and_proves_nothing(lab, me, target):
    me.says(State.UNFIT)
    assert lab.perform("bastion", fetch).commands == lab.perform("bastion", prove).commands == 0
    assert target.noops == ["unfit", "unfit"] and not me.has(Evidence.PROVEN)


# -------------------------------------------------------------------------------------------------------------- prove


def test_the_bastion_proves_a_release_and_its_embeddings_become_the_goldens(lab, me, target, lock):
    assert lab.perform("bastion", prove).good
    assert target.heard() == ["setup", "signed keep", "store admit", "engine load", "engine candidate", "engine smoke"]
    assert me.state is State.PROVEN and me.has(Evidence.PROVEN) and lab.run.goldens.belong_to(lock)
    assert lab.run.goldens.document()["classes"]["cpu/bfloat16"]["queries"] == ["q"]
    assert me.report.latency_ms == 12 and me.report.outbound_attempts == 0


def test_it_is_proven_without_network_gpus_or_goldens(lab, me, target, settings):
    me.settings = settings.model_copy(update={"gpus": "all"})
    lab.perform("bastion", prove)
    (text,) = target.call("engine", "candidate").document.values()
    services = yaml.safe_load(text)["services"]
    assert list(services) == ["smoke"] and services["smoke"]["network_mode"] == "none"
    assert "deploy" not in services["smoke"] and "--goldens" not in services["smoke"]["command"]
    smoke = target.call("engine", "smoke").options
    assert smoke["file"] == "/srv/models/state/x/candidate/compose.smoke.yaml"
    assert smoke["project-directory"] == "/srv/models/state/x/candidate"


def test_a_release_with_goldens_in_git_is_proven_already(lab, me, target, lock):
    lab.run.goldens.save(lock, EMBEDDINGS)
    assert lab.perform("bastion", prove).commands == 0
    assert me.state is State.PROVEN and me.has(Evidence.PROVEN) and target.calls == []


def test_a_dry_run_whose_fetch_would_change_something_keeps_that_said(lab, me, lock):
    lab.run.goldens.save(lock, EMBEDDINGS)
    me.says(State.WOULD_CHANGE)
    lab.rehearse("bastion", prove)
    assert me.state is State.WOULD_CHANGE
    me.says(State.UP_TO_DATE)
    lab.rehearse("bastion", prove)
    assert me.state is State.PROVEN


@pytest.mark.parametrize(("path", "value"), [("docker", None), ("docker.compose", None)])
def test_a_bastion_without_an_engine_leaves_the_proof_to_a_host(lab, me, target, path, value):
    me.facts = changed(me.facts, path, value)
    assert lab.perform("bastion", prove).commands == 0
    assert me.has(Evidence.PROVEN) and me.state is State.UP_TO_DATE and "goldens must be accepted" in me.why


def test_a_smoke_test_that_fails_proves_nothing_and_makes_no_goldens(lab, me, target, lock):
    target.answers["engine", "smoke"] = {"ok": False, "error": {"where": "smoke", "what": "keys are missing"}}
    assert not lab.perform("bastion", prove).good
    assert me.state is State.FAILED and not me.has(Evidence.PROVEN) and not lab.run.goldens.belong_to(lock)


@pytest.mark.parametrize("who", ["the operator", "a host"])
def test_new_goldens_are_not_signed_and_stop_there_where_signatures_are_asked_for(lab, me, lock, settings, who):
    if who == "the operator":
        me.settings = settings.model_copy(update={"sign": True})
    else:
        gpu = lab.run.hosts["gpu1"]
        gpu.facts = changed(gpu.facts, "signers", SIGNERS_LIST)
    assert not lab.perform("bastion", prove).good
    assert me.state is State.UNSIGNED and not me.has(Evidence.PROVEN) and lab.run.goldens.belong_to(lock)
    assert "ssh-keygen -Y sign -n hf-offline -f KEY group_data/locks/lab.goldens.json" in me.why


def test_what_pip_said_last_is_told(lab, me, target):
    def shell(command, **more):
        words = command.get_raw_value()
        said = [OutputLine("stderr", "no matching distribution")] if "-m venv" in words else []
        return "test -e" not in words and "-m venv" not in words, CommandOutput(said)

    usual = target.run_shell_command
    target.run_shell_command = lambda command, **more: (
        usual(command, **more)
        if "setup" in command.get_raw_value() or "signed" in command.get_raw_value()
        else shell(command)
    )
    with lab.on("bastion"), pytest.raises(Refused, match="no matching distribution"):
        from tasks.control.operations.fetching import ensure_venv

        ensure_venv(lab.run, me)
