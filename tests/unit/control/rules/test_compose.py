"""The override: mount, environment, image; the smoke service hardened; nothing else of the operator's touched."""

from __future__ import annotations

import pytest
import yaml

from tasks.control.rules import compose
from tasks.shared.lock import lock_text, parse_lock


def made(lock, settings, goldens=True, **change):
    text = compose.override(lock, settings.model_copy(update=change), "/srv/models/tool/tool-1.pyz", goldens)
    assert text.startswith(compose.MARKER)
    return yaml.safe_load(text)["services"]


def test_the_service_gets_the_release_read_only_and_offline(lock, settings):
    backend = made(lock, settings)["backend"]
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
    assert backend["labels"] == {"hf-offline.release": lock.id}
    assert "deploy" not in backend and "read_only" not in backend and "user" not in backend


def test_gpus_are_reserved_for_service_and_smoke_test(lock, settings):
    for service in made(lock, settings, gpus="all").values():
        assert service["deploy"]["resources"]["reservations"]["devices"][0]["count"] == "all"
    assert made(lock, settings, gpus="all")["smoke"]["command"][2:4] == ["--device", "cuda"]
    assert made(lock, settings)["smoke"]["command"][2:4] == ["--device", "cpu"]


def test_hardening_of_the_service_is_a_setting(lock, settings):
    assert made(lock, settings, harden=True)["backend"]["cap_drop"] == ["ALL"]


def test_the_smoke_service_has_no_network_and_no_rights(lock, settings):
    smoke = made(lock, settings)["smoke"]
    assert smoke["network_mode"] == "none" and smoke["profiles"] == ["smoke"] and smoke["read_only"] is True
    assert smoke["cap_drop"] == ["ALL"] and smoke["security_opt"] == ["no-new-privileges:true"] and "ports" not in smoke
    assert smoke["environment"]["HF_HUB_OFFLINE"] == "1" and smoke["restart"] == "no"
    assert (
        "--goldens" in smoke["command"] and "--goldens" not in made(lock, settings, goldens=False)["smoke"]["command"]
    )


def test_the_smoke_service_is_nobody_that_the_host_knows(lock, settings):
    for services in (
        made(lock, settings),
        yaml.safe_load(compose.smoke_only(lock, settings, "/t.pyz", False))["services"],
    ):
        user, group = services["smoke"]["user"].split(":")
        assert int(user) >= 10000 and int(group) >= 10000, "by number, as the image's names mean nothing"


def test_every_bind_is_read_only_and_makes_no_directory(lock, settings):
    binds = [each for service in made(lock, settings).values() for each in service["volumes"]]
    assert len(binds) == 5
    assert all(each["read_only"] is True and each["bind"] == {"create_host_path": False} for each in binds)


def test_the_floors_that_the_operator_chose_reach_the_smoke_test(lock, settings):
    command = made(lock, settings, tolerance={"cuda/bfloat16": [0.999, 0.99]})["smoke"]["command"]
    assert command[command.index("--tolerance") + 1] == "cuda/bfloat16=0.999,0.99"
    assert "--tolerance" not in made(lock, settings)["smoke"]["command"]


def test_compose_puts_nothing_in_for_a_dollar_of_the_operators(lock, settings):
    odd = {"SECRET": "pa$word", "BOTH": "$$x ${HOME}"}
    text = compose.override(lock, settings.model_copy(update={"environment": odd}), "/t.pyz", goldens=True)
    written = yaml.safe_load(text)["services"]["backend"]["environment"]
    assert written["SECRET"] == "pa$$word" and written["BOTH"] == "$$$$x $${HOME}"  # as Compose's own files say a `$`
    assert compose.environment_of(text, "backend").items() >= odd.items()


def test_an_operators_environment_reaches_both(lock, settings):
    services = made(lock, settings, environment={"OMP_NUM_THREADS": "2"})
    assert [service["environment"]["OMP_NUM_THREADS"] for service in services.values()] == ["2", "2"]


@pytest.mark.parametrize("text", ["", "services: {}", "{{{", f"{compose.MARKER}\n5", f"{compose.MARKER}\nservices: []"])
def test_what_is_no_override_of_ours_asks_for_no_environment(lock, settings, text):
    assert compose.environment_of(text, "backend") == {}
    ours = compose.override(lock, settings, "/t.pyz", True)
    assert compose.environment_of(ours, "backend")["HF_HUB_OFFLINE"] == "1"


def test_whoever_changes_an_environment_that_was_read_changes_nobody_elses(lock, settings):
    text = compose.override(lock, settings, "/t.pyz", True)
    compose.environment_of(text, "backend").clear()
    assert compose.environment_of(text, "backend")["HF_HUB_OFFLINE"] == "1"
    assert compose.environment_of(text, "smoke")["HOME"] == "/tmp" and compose.environment_of(text, "other") == {}


def way(document, delivery):
    document["serve"] |= {"delivery": delivery, **({"hf_home": "/models/hf"} if delivery == "bake" else {})}
    return parse_lock(lock_text(document))


def test_baked_nothing_of_the_store_is_mounted_into_the_service(document, settings):
    lock = way(document, "bake")
    services = made(lock, settings, delivery="bake")
    assert "volumes" not in services["backend"] and services["backend"]["image"] == lock.tag != lock.image.tag
    assert [v["target"] for v in services["smoke"]["volumes"]] == [compose.TOOL, compose.LOCK, compose.GOLDENS]


def test_online_the_service_waits_for_the_loader_and_reads_its_volume_offline(document, settings):
    lock = way(document, "online")
    chosen = settings.model_copy(update={"delivery": "online", "xet": "silent"})
    document = yaml.safe_load(compose.override(lock, chosen, "/t.pyz", True))
    services = document["services"]
    backend, loader = services["backend"], services[compose.LOADER]
    assert backend["depends_on"] == {compose.LOADER: {"condition": "service_completed_successfully"}}
    assert backend["environment"]["HF_HUB_OFFLINE"] == "1" and backend["volumes"][0]["read_only"] is True
    assert loader["environment"]["HF_ENDPOINT"] == "https://huggingface.co" and "ports" not in loader
    assert backend["environment"]["HF_HUB_DISABLE_XET"] == "1" and "HF_HUB_DISABLE_XET" not in loader["environment"]
    assert loader["environment"]["HF_HUB_OFFLINE"] == "0", "whatever the image says"
    assert document["volumes"] == {compose.VOLUME: {"name": lock.volume}}
    assert services["smoke"]["network_mode"] == "none" and "depends_on" not in services["smoke"]
    assert compose.LOADER not in made(way(document_of(lock), "mount"), settings)


def document_of(lock):
    return {**lock.document, "serve": dict(lock.serve)}


def test_the_loader_is_this_and_nothing_else(document, settings):
    document["serve"]["delivery"] = "online"
    lock = parse_lock(lock_text(document))
    services = made(lock, settings, delivery="online", hub="https://mirror", xet="off")
    environment = {
        "HF_ENDPOINT": "https://mirror",
        "HF_HOME": "/tmp",
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "30",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    bind = {"type": "bind", "read_only": True, "bind": {"create_host_path": False}}
    assert services["hf-model"] == {
        "image": lock.tag,
        "pull_policy": "never",
        "labels": {"hf-offline.release": lock.id},
        "network_mode": "host",
        "restart": "no",
        "user": "0:0",
        "environment": environment,
        "entrypoint": ["python3", "/tool.pyz", "online"],
        "command": ["--lock", "/lock.json", "--home", "/models/hf"],
        "volumes": [
            {"type": "volume", "source": "hf-offline-cache", "target": "/models/hf", "read_only": False},
            {**bind, "source": "/srv/models/tool/tool-1.pyz", "target": "/tool.pyz"},
            {**bind, "source": f"/srv/models/releases/{lock.id}/lock.json", "target": "/lock.json"},
        ],
    }


def test_the_loader_trusts_the_operators_certificates(document, settings):
    lock = way(document, "online")
    loader = made(lock, settings, delivery="online", ca_bundle="/etc/ssl/ours.pem", xet="off")[compose.LOADER]
    assert loader["environment"]["SSL_CERT_FILE"] == "/ca.pem" and loader["environment"]["HF_HUB_DISABLE_XET"] == "1"
    assert [v["source"] for v in loader["volumes"] if v["target"] == "/ca.pem"] == ["/etc/ssl/ours.pem"]
    assert "SSL_CERT_FILE" not in made(lock, settings, delivery="online")[compose.LOADER]["environment"]


def test_a_chosen_image_processor_is_told_to_both_and_the_default_to_none(document, lock, settings):
    assert all("IMAGE_PROCESSOR" not in service["environment"] for service in made(lock, settings).values())
    document["serve"]["image_processor"] = "pil"
    services = made(parse_lock(lock_text(document)), settings)
    assert [service["environment"]["IMAGE_PROCESSOR"] for service in services.values()] == ["pil", "pil"]
