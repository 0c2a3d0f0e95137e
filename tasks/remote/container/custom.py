"""The smoke test of any other Hub repository: the operator's own command, run in the container against the release.

Exit code 0 passes. The last line may be JSON, {"queries": [text], "vectors": {"query0": [[float, …]], …}}. Then these vectors
are compared with the goldens, as ColPali's are.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tasks.remote.container.goldens import check_release, judge, read_goldens, width_faults
from tasks.remote.container.options import Floors, Options
from tasks.remote.container.report import Checks, Comparison, Embeddings, Measured
from tasks.shared.lock import Lock
from tasks.shared.vectors import cosine, pack, unpack

# A release's own embeddings once more, on another CPU or GPU.
FLOORS = Floors(0.9999, 0.999)


def run(options: Options, lock: Lock, checks: Checks) -> Measured:
    """Run the command and add to `checks`."""
    started = time.monotonic()
    done = subprocess.run(lock.serve["smoke_command"], capture_output=True, text=True, errors="replace")
    seconds = time.monotonic() - started
    said = (done.stderr.strip() or done.stdout.strip())[-300:]
    checks.add("the smoke command passes", done.returncode == 0, f"exit code {done.returncode}: {said}")
    measured = Measured(options.device, str(lock.serve["dtype"]), seconds, {"page": seconds * 1000})
    try:
        found = json.loads(done.stdout.splitlines()[-1])
        faults = width_faults({name: shape_of(rows) for name, rows in found["vectors"].items()})
        embeddings = None if faults else embeddings_of(found, f"{options.device}/{lock.serve['dtype']}")
    except (ValueError, LookupError, TypeError, AttributeError):
        if options.goldens and read_goldens(options.goldens).classes:
            checks.add("the smoke command gives vectors", False, f"the goldens have some; it said {said!r}")
        return measured
    checks.add("all vectors have one width", not faults, ", ".join(faults))
    comparison = compare(options, lock, checks, embeddings.vectors) if embeddings and options.goldens else None
    return replace(measured, embeddings=embeddings, comparison=comparison)


def shape_of(rows: Any) -> tuple[int, ...]:
    """(count, width) of a list of vectors; (count, width, other width, …) where they differ."""
    return (len(rows), *sorted({len(row) for row in rows}))


def embeddings_of(found: Mapping[str, Any], device_class: str) -> Embeddings:
    """The vectors that the command printed, in the goldens' format. Of its inputs only the queries are known."""
    queries = [str(query) for query in found.get("queries", [])]
    digest = hashlib.sha256("\n".join(queries).encode()).hexdigest()
    return Embeddings(device_class, queries, digest, {name: pack(rows) for name, rows in found["vectors"].items()})


def compare(options: Options, lock: Lock, checks: Checks, ours: Mapping[str, Any]) -> Comparison | None:
    """Compare {name: packed vectors} with the first class of the goldens; None where there is nothing to compare."""
    goldens = read_goldens(str(options.goldens))
    check_release(checks, goldens, lock.id)
    if not goldens.classes:
        return None
    name, golden = min(goldens.classes.items())
    theirs = golden["vectors"]
    same = {key: each["shape"] for key, each in ours.items()} == {key: each["shape"] for key, each in theirs.items()}
    checks.add("shapes are the goldens'", same, f"{sorted(ours)} against {sorted(theirs)}")
    if not same:
        return None
    pairs = [pair for key in ours for pair in zip(unpack(ours[key]), unpack(theirs[key]))]  # noqa: B905 - Python 3.9
    return judge(checks, name, [cosine(a, b) for a, b in pairs], options.tolerance.get(name, FLOORS))
