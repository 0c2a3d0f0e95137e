"""The override: mount, environment, image; the smoke service hardened; nothing else of the operator's touched."""

from __future__ import annotations

import pytest
import yaml

from tasks.lib import compose, release, settings


@pytest.fixture
def chosen(values):
    return settings.check([("x", {**values, "gpus": 0})])


def made(lock, chosen, **change):
    text = compose.override(lock, chosen.model_copy(update=change), "/srv/models/tool/tool-1.pyz", goldens=True)
    assert text.startswith(compose.MARKER)
    return yaml.safe_load(text)["services"]


def test_the_service_gets_the_release_read_only_and_offline(lock, chosen):
    backend = made(lock, chosen)["backend"]
    mount = backend["volumes"][0]
    assert mount["source"] == f"/srv/models/releases/{lock.id}" and mount["target"] == "/models/hf"
    assert mount["read_only"] is True and mount["bind"] == {"create_host_path": False}
    for key, value in {
        "HF_HOME": "/models/hf",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }.items():
        assert backend["environment"][key] == value
    assert backend["environment"]["MODEL_COMMIT"] == lock.served.commit
    assert backend["image"] == lock.image.tag and backend["pull_policy"] == "never"
    assert "deploy" not in backend and "read_only" not in backend


def test_gpus_are_reserved_for_service_and_smoke_test(lock, chosen):
    for service in made(lock, chosen, gpus="all").values():
        assert service["deploy"]["resources"]["reservations"]["devices"][0]["count"] == "all"


def test_hardening_of_the_service_is_a_setting(lock, chosen):
    assert made(lock, chosen, harden=True)["backend"]["cap_drop"] == ["ALL"]


def test_the_smoke_service_has_no_network_and_no_rights(lock, chosen):
    smoke = made(lock, chosen)["smoke"]
    assert smoke["network_mode"] == "none" and smoke["profiles"] == ["smoke"] and smoke["read_only"] is True
    assert smoke["cap_drop"] == ["ALL"] and smoke["user"] != "root" and "ports" not in smoke
    assert smoke["environment"]["HF_HUB_OFFLINE"] == "1"
    assert "--goldens" in smoke["command"]


def test_an_operators_environment_reaches_both(lock, chosen):
    services = made(lock, chosen, environment={"OMP_NUM_THREADS": "2"})
    assert all(service["environment"]["OMP_NUM_THREADS"] == "2" for service in services.values())


def test_a_chosen_image_processor_is_told_to_both_and_the_default_to_none(document, lock, chosen):
    assert all("IMAGE_PROCESSOR" not in service["environment"] for service in made(lock, chosen).values())
    document["serve"]["image_processor"] = "pil"
    services = made(release.parse(release.write(document)), chosen)
    assert all(service["environment"]["IMAGE_PROCESSOR"] == "pil" for service in services.values())
