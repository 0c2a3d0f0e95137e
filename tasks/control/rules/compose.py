"""The release's override for the operator's stack: PyYAML in, text out. Pure; the stack's own file is never edited."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import yaml

from tasks.control.settings import Settings
from tasks.shared.lock import Lock
from tasks.shared.stack import CANDIDATE, LOADER, MARKER, RELEASE_LABEL, SMOKE

TOOL = "/tool.pyz"
GOLDENS = "/goldens.json"
LOCK = "/lock.json"
VOLUME = "hf-offline-cache"
HARDENED = {
    "read_only": True,
    "tmpfs": ["/tmp"],  # noqa: S108 - inside the container
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
}


def environment(lock: Lock, settings: Settings) -> dict[str, str]:
    """What makes the process read the release and never the network, and the operator's own."""
    chosen = lock.serve.get("image_processor")
    processor = {"IMAGE_PROCESSOR": chosen} if chosen else {}
    return {**lock.offline_environment(settings.hf_home), **processor, **_xet(settings), **settings.environment}


def _xet(settings: Settings) -> dict[str, str]:
    """Older clients warn of a missing hf_xet even where nothing is loaded; this silences them."""
    return {} if settings.xet == "on" else {"HF_HUB_DISABLE_XET": "1"}


def environment_of(override: str, service: str) -> dict[str, str]:
    """What an override asks to stand in the environment of the service's process: what an activation checks.

    {} where the text, which a host kept for us, is none of our overrides: each of those has an environment.
    """
    return dict(_read_environment(override, service))


# Reading YAML takes ten milliseconds, and most hosts of a fleet have the same text, which several rules ask about.
@lru_cache(maxsize=256)
def _read_environment(override: str, service: str) -> Mapping[str, str]:
    try:
        found = yaml.safe_load(override)["services"][service]["environment"] if override.startswith(MARKER) else {}
        return {str(key): str(value).replace("$$", "$") for key, value in found.items()}
    except (yaml.YAMLError, LookupError, TypeError, AttributeError):
        return {}


def _literal(values: Mapping[str, str]) -> dict[str, str]:
    """As Compose must read them: it puts variables of its own in for a single `$`."""
    return {key: value.replace("$", "$$") for key, value in values.items()}


def override(lock: Lock, settings: Settings, tool: str, goldens: bool) -> str:
    """The override file: the service with its mount, environment, image and GPUs; and the `smoke` service beside it."""
    service = _common(lock, settings)
    if settings.harden:
        service |= HARDENED
    return _text(lock, settings, tool, goldens, {settings.service: service})


def smoke_only(lock: Lock, settings: Settings, tool: str, goldens: bool) -> str:
    """The same smoke service alone, for the bastion, which has no stack."""
    return _text(lock, settings, tool, goldens, {})


def _text(lock: Lock, settings: Settings, tool: str, goldens: bool, services: Mapping[str, Any]) -> str:
    document: dict[str, Any] = {"services": {**services, SMOKE: _smoke(lock, settings, tool, goldens)}}
    if lock.delivery == "online":
        document["services"][LOADER] = _loader(lock, settings, tool)
        document["volumes"] = {VOLUME: {"name": lock.volume}}
    head = f"{MARKER}; release {lock.id}\n# Every deploy replaces this file. Change group_data/ and deploy again.\n"
    return head + yaml.safe_dump(document, sort_keys=True, width=120)


def _common(lock: Lock, settings: Settings) -> dict[str, Any]:
    service: dict[str, Any] = {
        "image": lock.tag,
        "pull_policy": "never",
        "labels": {RELEASE_LABEL: lock.id},
        "environment": _literal(environment(lock, settings)),
    }
    if lock.delivery == "mount":
        service["volumes"] = [_bind(f"{settings.model_store}/releases/{lock.id}", settings.hf_home)]
    if lock.delivery == "online":
        service["volumes"] = [_volume(settings, read_only=True)]
        # Compose starts the service when the loader has ended well; where nothing lacks, that is at once.
        service["depends_on"] = {LOADER: {"condition": "service_completed_successfully"}}
    if settings.gpus:
        device: dict[str, Any] = {"driver": "nvidia", "count": settings.gpus, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return service


def _smoke(lock: Lock, settings: Settings, tool: str, goldens: bool) -> dict[str, Any]:
    service = _common(lock, settings)
    command = ["--lock", LOCK, "--device", "cuda" if settings.gpus else "cpu"]
    for name, floors in sorted(settings.tolerance.items()):
        command += ["--tolerance", f"{name}={','.join(str(floor) for floor in floors)}"]
    service["volumes"] = [*service.get("volumes", []), _bind(tool, TOOL), _bind(_lock(lock, settings), LOCK)]
    if goldens:
        command += ["--goldens", GOLDENS]
        # Those of a test that has yet to pass; a person who runs the service compares with those that one has passed.
        folder = f"${{{CANDIDATE}:-{settings.model_store}/state/{lock.id}}}"
        service["volumes"].append(_bind(f"{folder}/goldens.json", GOLDENS))
    service.pop("depends_on", None)  # whoever runs it has loaded the volume
    service["environment"] = {**service["environment"], "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"}  # noqa: S108
    return (
        service
        | HARDENED
        | {
            "profiles": ["smoke"],
            "network_mode": "none",
            "restart": "no",
            "user": "10001:10001",
            "working_dir": "/tmp",  # noqa: S108 - inside the container
            "entrypoint": [settings.python, TOOL, "smoke"],
            "command": command,
        }
    )


def _loader(lock: Lock, settings: Settings, tool: str) -> dict[str, Any]:
    """Loads what the volume lacks, and ends. On the host's own network: its resolver and its routes are what works."""
    service: dict[str, Any] = {
        "image": lock.tag,
        "pull_policy": "never",
        "labels": {RELEASE_LABEL: lock.id},
        "network_mode": "host",
        "restart": "no",
        "user": "0:0",
        "environment": {
            # Whatever the image itself says: this one service does reach out, and as nobody.
            "HF_ENDPOINT": settings.hub,
            "HF_HOME": "/tmp",  # noqa: S108 - inside the container
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "30",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **({"HF_HUB_DISABLE_XET": "1"} if settings.xet == "off" else {}),
        },
        "entrypoint": [settings.python, TOOL, "online"],
        "command": ["--lock", LOCK, "--home", settings.hf_home],
        "volumes": [_volume(settings, read_only=False), _bind(tool, TOOL), _bind(_lock(lock, settings), LOCK)],
    }
    if settings.ca_bundle:
        service["volumes"].append(_bind(settings.ca_bundle, "/ca.pem"))
        service["environment"] |= {"SSL_CERT_FILE": "/ca.pem", "REQUESTS_CA_BUNDLE": "/ca.pem"}
    return service


def _lock(lock: Lock, settings: Settings) -> str:
    return f"{settings.model_store}/releases/{lock.id}/lock.json"


def _volume(settings: Settings, read_only: bool) -> dict[str, Any]:
    return {"type": "volume", "source": VOLUME, "target": settings.hf_home, "read_only": read_only}


def _bind(source: str, target: str) -> dict[str, Any]:
    # Compose's long form: a missing source is an error, where the short form makes an empty directory and goes on.
    return {"type": "bind", "source": source, "target": target, "read_only": True, "bind": {"create_host_path": False}}
