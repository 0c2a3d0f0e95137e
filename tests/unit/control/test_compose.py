"""The override: mount, environment, image; the smoke service hardened; nothing else of the operator's touched."""

from __future__ import annotations

import pytest
import yaml

from tasks.control import compose, settings
from tasks.shared.lock import lock_text, parse_lock


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


def test_compose_puts_nothing_in_for_a_dollar_of_the_operators(lock, chosen):
    odd = {"SECRET": "pa$word", "BOTH": "$$x ${HOME}"}
    text = compose.override(lock, chosen.model_copy(update={"environment": odd}), "/t.pyz", goldens=True)
    written = yaml.safe_load(text)["services"]["backend"]["environment"]
    assert written["SECRET"] == "pa$$word" and written["BOTH"] == "$$$$x $${HOME}"  # as Compose's own files say a `$`
    assert compose.environment_of(text, "backend").items() >= odd.items()


def test_an_operators_environment_reaches_both(lock, chosen):
    services = made(lock, chosen, environment={"OMP_NUM_THREADS": "2"})
    assert all(service["environment"]["OMP_NUM_THREADS"] == "2" for service in services.values())


def way(document, delivery):
    document["serve"] |= {"delivery": delivery, **({"hf_home": "/models/hf"} if delivery == "bake" else {})}
    return parse_lock(lock_text(document))


def test_baked_nothing_of_the_store_is_mounted_into_the_service(document, chosen):
    lock = way(document, "bake")
    services = made(lock, chosen, delivery="bake")
    assert "volumes" not in services["backend"] and services["backend"]["image"] == lock.tag != lock.image.tag
    assert [v["target"] for v in services["smoke"]["volumes"]] == [compose.TOOL, compose.LOCK, compose.GOLDENS]


def test_online_the_service_waits_for_the_loader_and_reads_its_volume_offline(document, chosen):
    lock = way(document, "online")
    text = compose.override(lock, chosen.model_copy(update={"delivery": "online", "xet": "silent"}), "/t.pyz", True)
    services = yaml.safe_load(text)["services"]
    backend, loader = services["backend"], services[compose.LOADER]
    assert backend["depends_on"] == {compose.LOADER: {"condition": "service_completed_successfully"}}
    assert backend["environment"]["HF_HUB_OFFLINE"] == "1" and backend["volumes"][0]["read_only"] is True
    assert loader["environment"]["HF_ENDPOINT"] == "https://huggingface.co" and "ports" not in loader
    assert backend["environment"]["HF_HUB_DISABLE_XET"] == "1" and "HF_HUB_DISABLE_XET" not in loader["environment"]
    assert loader["environment"]["HF_HUB_OFFLINE"] == "0", "whatever the image says"
    assert yaml.safe_load(text)["volumes"] == {compose.VOLUME: {"name": lock.volume}}
    assert services["smoke"]["network_mode"] == "none" and "depends_on" not in services["smoke"]


def test_a_chosen_image_processor_is_told_to_both_and_the_default_to_none(document, lock, chosen):
    assert all("IMAGE_PROCESSOR" not in service["environment"] for service in made(lock, chosen).values())
    document["serve"]["image_processor"] = "pil"
    services = made(parse_lock(lock_text(document)), chosen)
    assert all(service["environment"]["IMAGE_PROCESSOR"] == "pil" for service in services.values())
