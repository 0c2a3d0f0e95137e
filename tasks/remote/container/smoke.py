"""The smoke test: embeds offline in the container against the mounted release, and says whether it is the locked model.

    smoke --lock /lock.json [--goldens /goldens.json] [--device auto|cpu|cuda] [--tolerance cuda/bfloat16=0.999,0.99]

It runs where colpali-engine and torch are; HF_HOME is the release. The answer is one JSON line on standard output:

    ok, checks [{"name", "ok", "detail"}], outbound_attempts, or error
    device, dtype, load_seconds, latency_ms {"page", "query"} (medians of one forward)
    embeddings {"class", "queries": texts, "inputs_sha256", "vectors": {"page0": {"shape": [n, width], "f16": base64}, …}}
    cosine {"mean", "p1", "min"} with the goldens of the class "against"
    of ColPali and its kind: attention, image_processor (its class), peak_memory_bytes, versions, scores (MaxSim, queries ×
    pages)
"""

from __future__ import annotations

import importlib
import json
import os
import traceback
from collections.abc import Sequence
from typing import Any

from tasks.remote.container import cache, options
from tasks.remote.container.options import Options
from tasks.remote.container.outbound import Outbound
from tasks.remote.container.report import Checks
from tasks.shared.errors import Refused
from tasks.shared.lock import parse_lock


def main(argv: Sequence[str]) -> int:
    """Run the program; return its exit code."""
    asked = options.parse(argv)
    outbound = Outbound()
    checks = Checks()
    answer: dict[str, Any]
    try:
        answer = run(asked, checks)
    except Exception as error:
        checks = Checks()
        answer = {"error": refusal(error)}
    count, attempts = outbound.count()
    if "error" not in answer:
        checks.add("no outbound attempt", count == 0, "; ".join(attempts[:5]))
    answer |= {"checks": checks.as_json(), "outbound_attempts": count}
    answer["ok"] = "error" not in answer and checks.passed()
    print(json.dumps(answer, ensure_ascii=True, sort_keys=True))
    return 0 if answer["ok"] else 1


def run(asked: Options, checks: Checks) -> dict[str, Any]:
    """Add to `checks`; return the other fields of the answer, {} where the test ended early."""
    with open(asked.lock, encoding="ascii") as file:
        lock = parse_lock(file.read(), asked.lock)
    faults = cache.faults(os.environ.get("HF_HOME", ""), lock)
    checks.add("cache is whole", not faults, "; ".join(faults[:8]))
    if faults:
        return {}
    # A custom model's image need not have torch and colpali-engine.
    kind = "custom" if lock.serve["family"] == "custom" else "colpali"
    measured = importlib.import_module(f"tasks.remote.container.{kind}").run(asked, lock, checks)
    return dict(measured.as_json()) if measured else {}


def refusal(error: Exception) -> dict[str, str]:
    """An error as the answer's: a refusal's own words, else where it was raised and what it says."""
    if isinstance(error, Refused):
        return error.error
    last = traceback.extract_tb(error.__traceback__)[-1]
    kind = "out of memory" if "out of memory" in str(error).lower() else type(error).__name__
    return {"where": f"smoke: {last.filename}:{last.lineno}", "what": kind, "found": " ".join(str(error).split())[:500]}
