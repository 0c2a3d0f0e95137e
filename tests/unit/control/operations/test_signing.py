"""Signatures travel before any byte, as they lie in git; and one machine that asks for them asks for all."""

from __future__ import annotations

import pytest

from tasks.control.git.files import FOLDER
from tasks.control.git.lockfile import lock_path
from tasks.control.git.signatures import signatures, unsigned_files
from tasks.control.operations.signing import asked_for, bring_signatures
from tasks.shared.errors import Refused
from tasks.shared.lock import lock_text
from tests.unit.control.facts import changed
from tests.unit.control.harness import make_lab


@pytest.fixture
def lab(settings, lock, desk):
    (desk / FOLDER).mkdir(parents=True)
    lock_path(settings).write_text(lock_text(lock.document))
    lab = make_lab(settings, lock)
    lab.target("gpu1").answers["signed", "keep"] = {"ok": True}
    return lab


def bring(lab, lock):
    with lab.on("gpu1") as target:
        bring_signatures(lab.run, lab.run.hosts["gpu1"], lock)
    return target.calls[-1]


def test_lock_and_goldens_travel_byte_for_byte_with_their_signatures(lab, lock, settings):
    text = lock_text(lock.document)
    assert bring(lab, lock).document == {
        "lock": {"path": "group_data/locks/lab.json", "text": text, "signature": None},
        "goldens": None,
    }
    lab.run.goldens.save(lock, None)
    (lab.run.goldens.path.with_name("lab.goldens.json.sig")).write_text("G")
    lock_path(settings).with_name("lab.json.sig").write_text("L")
    heard = bring(lab, lock)
    assert heard.document["lock"]["signature"] == "L" and heard.options["release"] == lock.id
    assert heard.document["goldens"]["text"] == lab.run.goldens.text() and heard.document["goldens"]["signature"] == "G"


def test_what_is_not_signed_yet_is_named(lab, lock, settings):
    assert unsigned_files(settings, lock) == ["group_data/locks/lab.json"]
    lab.run.goldens.save(lock, None)
    lock_path(settings).with_name("lab.json.sig").write_text("L")
    assert unsigned_files(settings, lock) == ["group_data/locks/lab.goldens.json"]
    assert signatures(settings, True) == {"lock": "L", "goldens": None}


def test_a_host_that_asks_for_better_ones_is_a_refusal(lab, lock):
    lab.target("gpu1").answers["signed", "keep"] = {
        "ok": False,
        "error": {"where": "gpu1", "what": "no good signature"},
    }
    with pytest.raises(Refused, match="gpu1: no good signature"):
        bring(lab, lock)


def test_one_machine_that_asks_for_signatures_is_enough(lab, settings):
    assert not asked_for(lab.run)
    gpu = lab.run.hosts["gpu1"]
    bare, gpu.facts = gpu.facts, changed(gpu.facts, "signers", [("/x", 0, 0)])
    assert asked_for(lab.run)
    gpu.facts = bare
    lab.run.bastion.settings = settings.model_copy(update={"sign": True})
    assert asked_for(lab.run)
