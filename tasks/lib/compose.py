"""The release's override for the operator's stack: PyYAML in, text out. Pure; the stack's own file is never edited."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from tasks.lib.release import Lock
from tasks.lib.settings import Settings

MARKER = "# written by hf-offline"
TOOL = "/tool.pyz"
GOLDENS = "/goldens.json"
HARDENED = {
    "read_only": True,
    "tmpfs": ["/tmp"],  # noqa: S108 - inside the container
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
}


def environment(lock: Lock, settings: Settings) -> dict[str, str]:
    """What makes the process read the mount and never the network; it must be there before Python starts."""
    image_processor = lock.serve.get("image_processor")
    return {
        "HF_HOME": settings.hf_home,
        "HF_HUB_CACHE": f"{settings.hf_home}/hub",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DO_NOT_TRACK": "1",
        "MODEL_ID": lock.served.repo,
        "MODEL_COMMIT": lock.served.commit,
        **({"IMAGE_PROCESSOR": image_processor} if image_processor else {}),
        **settings.environment,
    }


def environment_of(override: str, service: str) -> dict[str, str]:
    """What an override asks to stand in the environment of the service's process: what an activation checks."""
    return dict(yaml.safe_load(override)["services"][service]["environment"])


def override(lock: Lock, settings: Settings, tool: str, goldens: bool) -> str:
    """The override file: the service with its mount, environment, image and GPUs; and the `smoke` service beside it."""
    service = _common(lock, settings)
    if settings.harden:
        service |= HARDENED
    services = {settings.service: service, "smoke": _smoke(lock, settings, tool, goldens)}
    return _text(lock, {"services": services})


def smoke_only(lock: Lock, settings: Settings, tool: str, goldens: bool) -> str:
    """The same smoke service alone, for the bastion, which has no stack."""
    return _text(lock, {"services": {"smoke": _smoke(lock, settings, tool, goldens)}})


def _text(lock: Lock, document: Mapping[str, Any]) -> str:
    head = f"{MARKER}; release {lock.id}\n# Every deploy replaces this file. Change group_data/ and deploy again.\n"
    return head + yaml.safe_dump(document, sort_keys=True, width=120)


def _common(lock: Lock, settings: Settings) -> dict[str, Any]:
    release = f"{settings.model_store}/releases/{lock.id}"
    service: dict[str, Any] = {
        "image": lock.image.tag,
        "pull_policy": "never",
        "labels": {"hf-offline.release": lock.id},
        "environment": environment(lock, settings),
        "volumes": [_bind(release, settings.hf_home)],
    }
    if settings.gpus:
        device: dict[str, Any] = {"driver": "nvidia", "count": settings.gpus, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return service


def _smoke(lock: Lock, settings: Settings, tool: str, goldens: bool) -> dict[str, Any]:
    service = _common(lock, settings)
    command = ["--lock", f"{settings.hf_home}/lock.json", "--device", "cuda" if settings.gpus else "cpu"]
    for name, floors in sorted(settings.tolerance.items()):
        command += ["--tolerance", f"{name}={','.join(str(floor) for floor in floors)}"]
    service["volumes"] = [*service["volumes"], _bind(tool, TOOL)]
    if goldens:
        command += ["--goldens", GOLDENS]
        service["volumes"].append(_bind(f"{settings.model_store}/state/{lock.id}/goldens.json", GOLDENS))
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


def _bind(source: str, target: str) -> dict[str, Any]:
    # Compose's long form: a missing source is an error, where the short form makes an empty directory and goes on.
    return {"type": "bind", "source": source, "target": target, "read_only": True, "bind": {"create_host_path": False}}
