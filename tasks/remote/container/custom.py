"""Any other Hub repository: the smoke test is the operator's own command, run in the container against the release.

Exit code 0 is a pass. If its last line is JSON, {"queries": [text], "vectors": {"query0": [[float, …]], …}}, then these are
compared with the goldens, as ColPali's are.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import subprocess
import time

from tasks.remote.host.probe import cosine, vectors

# A release's own embeddings again, on another CPU or GPU: cosine (mean, 1st percentile).
FLOORS = (0.9999, 0.999)


def run(args, lock, checks):
    """Adds to `checks`; -> what else there is to tell (smoke.py has the fields)."""
    started = time.monotonic()
    done = subprocess.run(lock.serve["smoke_command"], capture_output=True, text=True, errors="replace")
    said = (done.stderr.strip() or done.stdout.strip())[-300:]
    checks.add("the smoke command passes", done.returncode == 0, f"exit code {done.returncode}: {said}")
    seconds = time.monotonic() - started
    told = {"device": args.device, "dtype": lock.serve["dtype"], "load_seconds": round(seconds, 3), "cosine": None}
    told |= {"latency_ms": {"page": round(seconds * 1000, 2)}, "embeddings": None}
    try:
        ours = json.loads(done.stdout.splitlines()[-1])
        packed = {name: pack(rows) for name, rows in ours["vectors"].items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        if args.goldens and golden_classes(args):
            checks.add("the smoke command gives vectors", False, f"the goldens have some; it said {said!r}")
        return told
    device_class = f"{args.device}/{lock.serve['dtype']}"
    queries = [str(query) for query in ours.get("queries", [])]
    digest = hashlib.sha256("\n".join(queries).encode()).hexdigest()
    told["embeddings"] = {"class": device_class, "queries": queries, "inputs_sha256": digest, "vectors": packed}
    if args.goldens:
        compare(args, lock, checks, told, packed)
    return told


def pack(rows):
    flat = [float(value) for row in rows for value in row]
    data = struct.pack(f"<{len(flat)}e", *flat)
    return {"shape": [len(rows), len(rows[0])], "f16": base64.b64encode(data).decode("ascii")}


def golden_classes(args):
    with open(args.goldens, encoding="ascii") as file:
        return json.load(file).get("classes", {})


def compare(args, lock, checks, told, ours):
    with open(args.goldens, encoding="ascii") as file:
        goldens = json.load(file)
    checks.add("goldens are this release's", goldens.get("release") == lock.id, str(goldens.get("release"))[:12])
    for name, golden in sorted(goldens.get("classes", {}).items())[:1]:
        theirs = golden["vectors"]
        same = {key: entry["shape"] for key, entry in ours.items()} == {k: e["shape"] for k, e in theirs.items()}
        checks.add("shapes are the goldens'", same, f"{sorted(ours)} against {sorted(theirs)}")
        if not same:
            return
        found = sorted(
            cosine(a, b)
            for key in ours
            for a, b in zip(vectors(ours[key]), vectors(theirs[key]))  # noqa: B905
        )
        mean, p1 = sum(found) / len(found), found[len(found) // 100]
        told.update(cosine={"mean": round(mean, 6), "p1": round(p1, 6), "min": round(found[0], 6)}, against=name)
        floors = dict(args.tolerance).get(name, FLOORS)
        detail = f"mean {mean:.5f}, p1 {p1:.5f} against {name}; expected at least {floors[0]}, {floors[1]}"
        checks.add("embeddings are the goldens'", mean >= floors[0] and p1 >= floors[1], detail)
