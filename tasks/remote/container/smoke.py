"""Embeds offline in the container, against the mounted release, and says whether it is the model that was locked.

    smoke --lock /lock.json [--goldens /goldens.json] [--device auto|cpu|cuda] [--tolerance cuda/bfloat16=0.999,0.99]

Runs where colpali-engine and torch are; HF_HOME is the release. One JSON line on standard output: "ok", "checks" (name,
ok, detail), "device", "dtype", "attention", "image_processor" (its class), "load_seconds", "latency_ms" {"page", "query"} (median of forwards),
"peak_memory_bytes", "versions", "cosine" {"mean", "p1", "min"} against the goldens of class "against",
"outbound_attempts", "scores" (MaxSim, queries × pages), "embeddings" {"class", "queries": texts, "inputs_sha256",
"vectors": {"page0": {"shape": [n, 128], "f16": base64}, …}}.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
import traceback
import typing

from tasks.shared import layout
from tasks.shared.errors import Refused
from tasks.shared.lock import parse_lock


class Outbound:
    """Counts every attempt to leave: Python's own sockets by audit hook, everything else by the kernel's counters."""

    COUNTERS: typing.ClassVar = {
        "Ip": ("OutRequests", "OutNoRoutes"),
        "Tcp": ("ActiveOpens",),
        "Udp": ("OutDatagrams",),
    }

    def __init__(self):
        self.attempts = []
        self.before = self.kernel()
        sys.addaudithook(self.hear)

    def hear(self, event, args):
        if event == "socket.getaddrinfo":
            self.attempts.append(f"lookup of {args[0]}:{args[1]} from {frame()}")
        elif event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(args[-1], tuple):
            self.attempts.append(f"{event[7:]} to {args[-1][0]}:{args[-1][1]} from {frame()}")

    def kernel(self):
        """{counter: number} of this network namespace; with network none nobody else is in it."""
        found, lines = {}, []
        with contextlib.suppress(OSError), open("/proc/net/snmp", encoding="ascii") as file:
            lines = file.read().splitlines()
        for names, numbers in zip(lines[::2], lines[1::2]):  # noqa: B905 - Python 3.9
            protocol = names.partition(":")[0]
            row = dict(zip(names.split()[1:], numbers.split()[1:]))  # noqa: B905
            found.update({f"{protocol} {n}": int(row[n]) for n in self.COUNTERS.get(protocol, ()) if n in row})
        return found

    def count(self):
        after = self.kernel()
        moved = {name: after[name] - number for name, number in self.before.items() if after.get(name, 0) > number}
        return max(len(self.attempts), sum(moved.values())), [*self.attempts, *(f"{n}: {c}" for n, c in moved.items())]


def frame():
    """The caller outside the standard library's networking: file and line, for the message."""
    for entry in reversed(traceback.extract_stack()[:-2]):
        if not entry.filename.endswith(("socket.py", "smoke.py")):
            return f"{entry.filename}:{entry.lineno}"
    return "?"


# --------------------------------------------------------------------------------------------- the cache, by itself


def lacks(root, lock):
    """What the mounted cache lacks, named: repositories, refs, files, markers, links that leave it. [] is whole."""
    tree, found = layout.cache_tree(lock), []
    for path in sorted(set(tree.links) | set(tree.texts)):
        full = os.path.join(root, path)
        if not os.path.exists(full):
            what = "dangles" if os.path.islink(full) else "is missing"
            found.append(f"{path} {what}")
        elif not os.path.realpath(full).startswith(os.path.realpath(root) + os.sep):
            found.append(f"{path} leads out of the release, to {os.path.realpath(full)}")
        elif path.endswith("refs/main"):
            with open(full, encoding="ascii", newline="") as file:
                if file.read() != tree.texts[path]:
                    found.append(f"{path} names another commit than the lock")
        elif path in tree.links and os.path.getsize(full) != size_of(lock, path):
            found.append(f"{path} has {os.path.getsize(full)} bytes, not {size_of(lock, path)}")
    return found


def size_of(lock, link):
    for model in lock.models:
        prefix = f"hub/{model.folder}/snapshots/{model.commit}/"
        if link.startswith(prefix):
            return model.files[link[len(prefix) :]].size
    return None


# ------------------------------------------------------------------------------------------------------------- checks


class Checks(list):
    def add(self, name, ok, detail=""):
        self.append({"name": name, "ok": bool(ok), "detail": str(detail)[:400]})


def run(args):
    checks = Checks()
    with open(args.lock, encoding="ascii") as file:
        lock = parse_lock(file.read(), args.lock)
    missing = lacks(os.environ.get("HF_HOME", ""), lock)
    checks.add("cache is whole", not missing, "; ".join(missing[:8]))
    if missing:
        return {"checks": checks}
    # torch and colpali-engine are for the families that need them
    family = importlib.import_module(
        f"tasks.remote.container.{'custom' if lock.serve['family'] == 'plain' else 'colpali'}"
    )
    return {"checks": checks, **family.run(args, lock, checks)}


def floors(text):
    """`cuda/bfloat16=0.999,0.99` -> (class, (mean, p1))"""
    name, _, numbers = text.partition("=")
    mean, p1 = (float(number) for number in numbers.split(","))
    return name, (mean, p1)


def main(argv):
    parser = argparse.ArgumentParser(prog="smoke")
    parser.add_argument("--lock", required=True)
    parser.add_argument("--goldens")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--tolerance", type=floors, action="append", default=[])
    args = parser.parse_args(argv)
    outbound = Outbound()
    try:
        answer = run(args)
    except Refused as no:
        answer = {"error": no.error, "checks": []}
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind = "out of memory" if "out of memory" in str(error).lower() else type(error).__name__
        found = " ".join(str(error).split())[:500]
        answer = {
            "checks": [],
            "error": {"where": f"smoke: {last.filename}:{last.lineno}", "what": kind, "found": found},
        }
    count, attempts = outbound.count()
    if "error" not in answer:
        checks = answer["checks"]
        checks.append({"name": "no outbound attempt", "ok": count == 0, "detail": "; ".join(attempts[:5])[:400]})
    answer["outbound_attempts"] = count
    answer["ok"] = "error" not in answer and all(check["ok"] for check in answer["checks"])
    print(json.dumps(answer, ensure_ascii=True, sort_keys=True))
    return 0 if answer["ok"] else 1
