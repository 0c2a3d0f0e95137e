"""Made-up locks and hosts for tests that do no I/O."""

from __future__ import annotations

import copy

import pytest

from tasks.shared.lock import lock_text, parse_lock
from tasks.shared.names import git_sha1

ADAPTER, BASE = "docai/colpali-tiny", "docai/colpaligemma-tiny-base"


def file(text: str, lfs: bool = False, size: int | None = None) -> dict:
    data = text.encode()
    import hashlib

    sha = hashlib.sha256(data).hexdigest()
    return {"size": len(data) if size is None else size, "sha256": sha, "etag": sha if lfs else git_sha1(data)}


def digest(text: str) -> str:
    return "sha256:" + file(text)["sha256"]


DOCUMENT = {
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
SETTINGS = {
    "lock": "lab",
    "models": [{"repo": ADAPTER, "revision": "main"}],
    "image": "docker-daemon:docai/backend:1.0",
}


@pytest.fixture
def document() -> dict:
    return copy.deepcopy(DOCUMENT)


@pytest.fixture
def lock(document):
    return parse_lock(lock_text(document))


@pytest.fixture
def values() -> dict:
    return copy.deepcopy(SETTINGS)
