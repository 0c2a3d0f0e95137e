"""Embeds the fixed inputs with a model of ColPali's kind, and what is computed from the vectors. It needs torch.

Vectors are {"page0": (n, width) float32 tensor, …, "query0": …}: one row for each token that is not masked.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.remote.container.inputs import PAGES, QUERIES


@dataclass(frozen=True)
class Embedded:
    """The vectors, and the median time of a forward in ms: {"page", "query"}."""

    vectors: dict[str, Any]
    latency_ms: dict[str, float]


def embed(model: Any, processor: Any, images: Sequence[Any], device: str) -> Embedded:
    """Embed the pages and the queries, one a forward: in a batch, padding changes a query's embedding."""
    import torch

    found: dict[str, Any] = {}
    times: dict[str, list[float]] = {"page": [], "query": []}
    batches = [("page", i, processor.process_images([image])) for i, image in enumerate(images)]
    batches += [("query", i, processor.process_queries([text])) for i, text in enumerate(QUERIES)]
    for kind, number, made in batches:
        batch = made.to(device)
        started = time.monotonic()
        with torch.inference_mode():
            vectors = model(**batch)
        if device == "cuda":
            torch.cuda.synchronize()
        times[kind].append((time.monotonic() - started) * 1000)
        mask = batch["attention_mask"][0].bool()
        found[f"{kind}{number}"] = vectors[0][mask].float().cpu()
    return Embedded(found, {kind: sorted(values)[len(values) // 2] for kind, values in times.items()})


def maxsim(vectors: Mapping[str, Any]) -> list[list[float]]:
    """Scores (queries × pages): for each query token its best page token, summed (the late interaction of ColPali)."""
    pages, queries = (
        [vectors[f"{kind}{i}"] for i in range(n)] for kind, n in (("page", PAGES), ("query", len(QUERIES)))
    )
    return [[float((query @ page.T).max(1).values.sum()) for page in pages] for query in queries]


def cosines(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[float]:
    """The cosine of each vector with its counterpart, over all of `theirs`, sorted."""
    import torch

    every = [torch.nn.functional.cosine_similarity(ours[name], theirs[name], dim=1) for name in sorted(theirs)]
    return sorted(torch.cat(every).tolist())


def pack_all(vectors: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The vectors as JSON carries them: see shared/vectors.py."""
    return {
        name: {"shape": list(v.shape), "f16": base64.b64encode(v.half().numpy().tobytes()).decode("ascii")}
        for name, v in vectors.items()
    }


def unpack_all(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The vectors of what `pack_all` made."""
    import numpy
    import torch

    flat = {name: numpy.frombuffer(base64.b64decode(each["f16"]), dtype="<f2") for name, each in entries.items()}
    return {name: torch.from_numpy(v.reshape(entries[name]["shape"]).astype("f4")) for name, v in flat.items()}
