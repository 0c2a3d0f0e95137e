"""The embedding space of a release: whether its vectors may stand in one index with another release's."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tasks.shared.lock import Lock

# Files of a repository that cannot change an embedding.
NEUTRAL_FILES = ("generation_config.json", "README.md")


def embedding_space(lock: Lock) -> str:
    """The id of the embedding space, 12 hex digits. Releases with the same id may answer one index.

    It is made from what decides a vector: the files of the models, which model is served, how it is pooled (the family),
    its dtype, and the image processor where the operator chose one. The commit is no part of it: a commit that changes a
    README alone is the same space.
    """
    files = {
        model.repo: {path: file.sha256 for path, file in model.files.items() if path not in NEUTRAL_FILES}
        for model in lock.models
    }
    decides: dict[str, Any] = {"files": files, **{key: lock.serve.get(key) for key in ("model", "family", "dtype")}}
    if lock.serve.get("image_processor"):
        # torchvision lacks ColSmol's own filter (Lanczos), so a page's vectors differ by more than rounding.
        decides["image_processor"] = lock.serve["image_processor"]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode("ascii")).hexdigest()[:12]
