"""Made-up locks and settings for tests that do no I/O."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import pytest

from tasks.control.settings import Settings
from tasks.control.settings_layers import read_settings
from tasks.shared.lock import Lock, lock_text, parse_lock
from tasks.shared.names import git_sha1

ADAPTER, BASE = "docai/colpali-tiny", "docai/colpaligemma-tiny-base"


def file(text: str, lfs: bool = False, size: int | None = None) -> dict[str, Any]:
    data = text.encode()
    sha = hashlib.sha256(data).hexdigest()
    return {"size": len(data) if size is None else size, "sha256": sha, "etag": sha if lfs else git_sha1(data)}


def digest(text: str) -> str:
    return "sha256:" + str(file(text)["sha256"])


DOCUMENT: dict[str, Any] = {
    "format": 1,
    "asked": {ADAPTER: "main"},
    "models": [
        {
            "repo": ADAPTER,
            "role": "adapter",
            "base": BASE,
            "commit": "a" * 40,
            "files": {
                "adapter_config.json": file("{}"),
                "adapter_model.safetensors": file("adapter", lfs=True),
                "nested/deep/vocab.txt": file("words"),
            },
            "absent": ["config.json"],
        },
        {
            "repo": BASE,
            "role": "base",
            "base": None,
            "commit": "b" * 40,
            "files": {"config.json": file("{ }"), "model.safetensors": file("weights", lfs=True)},
            "absent": [],
        },
    ],
    "image": {
        "name": "docai/backend:1.0",
        "media_type": "application/vnd.oci.image.manifest.v1+json",
        "manifest": {"digest": digest("manifest"), "size": 400},
        "config": {"digest": digest("config"), "size": 300},
        "layers": [{"digest": digest("layer"), "size": 1000}],
    },
    "serve": {"model": ADAPTER, "family": "colpali", "dtype": "bfloat16", "attention": "sdpa"},
}
SETTINGS: dict[str, Any] = {
    "lock": "lab",
    "models": [{"repo": ADAPTER, "revision": "main"}],
    "image": "docker-daemon:docai/backend:1.0",
}


@pytest.fixture
def document() -> dict[str, Any]:
    return copy.deepcopy(DOCUMENT)


@pytest.fixture
def lock(document: dict[str, Any]) -> Lock:
    return parse_lock(lock_text(document))


@pytest.fixture
def values() -> dict[str, Any]:
    return copy.deepcopy(SETTINGS)


@pytest.fixture
def settings(values: dict[str, Any]) -> Settings:
    """Of a host without GPUs, with the defaults."""
    return read_settings([("group_data/all.py", {**values, "gpus": 0})])


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """An empty directory as the operator's clone: what is written for git, and reports, go there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
