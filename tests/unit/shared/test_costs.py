"""What each delivery costs, in bytes; and refusals that name what they found."""

from __future__ import annotations

import pytest

from tasks.shared.errors import Refused
from tasks.shared.lock import lock_text, parse_lock
from tasks.shared.names import base_of, check_config
from tests.unit.conftest import digest


def test_the_costs_of_the_three_deliveries(document):
    document["image"]["layers"] = [{"digest": digest("first"), "size": 5000}, {"digest": digest("last"), "size": 70}]
    lock = parse_lock(lock_text(document))
    served = sum(file.size for file in lock.served.files.values())
    model = sum(file.size for each in lock.models for file in each.files.values())
    assert 0 < served < model
    assert lock.costs() == {
        "mount": {"image": 5070, "model_change": served, "code_change": 70},
        "bake": {"image": 5070 + model, "model_change": served, "code_change": 70},
        "online": {"image": 5070, "model_change": 0, "code_change": 70},
    }
    document["image"]["layers"] = []
    assert parse_lock(lock_text(document)).costs()["mount"] == {"image": 0, "model_change": served, "code_change": 0}


def test_a_refusal_of_code_names_the_file_and_the_key():
    with pytest.raises(Refused) as no:
        check_config("a/b: config.json", {"auto_map": {"AutoModel": "x.Y"}})
    assert no.value.error["where"] == "a/b: config.json" and no.value.error["found"] == "auto_map"
    assert "Python code" in no.value.error["what"] and "transformers" in no.value.error["expected"]
    assert check_config("a/b: config.json", {"model_type": "x"}) is None


def test_a_refusal_of_a_base_names_the_file_and_what_it_says():
    with pytest.raises(Refused) as no:
        base_of("a/b: adapter_config.json", {"base_model_name_or_path": "/root/é"})
    error = no.value.error
    assert error["where"] == "a/b: adapter_config.json" and error["expected"] == "owner/name"
    assert error["found"] == r"'/root/\xe9'" and "base_model_name_or_path" in error["what"]
