"""The kill test (after ostree's): interrupt activations at random times, in four ways; every host must come out old or new.

    python3 -m tests.e2e.kill [ROUNDS] [SEED] [--host lab-gpu3]     needs the lab with four GPU hosts, deployed (tests/e2e/test_30_rollouts.py)

A clean activation takes T seconds; each round strikes at a random time within 1.1 T of its beginning. Then: old or new, complete, hashes
clean; one more run converges; the next changes nothing. The histogram tells whether the strikes hit anything.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.e2e.conftest import ROOT, command, on
from tests.e2e.fleet import INVENTORY, STORE, container, current, fleet, journal, until, weights
from tests.lab import lab

HOST = "lab-gpu3"
FAULTS = ("kill the controller", "kill the host program", "cut the network", "power off")
QUICK = ("--data", "confirm_deadline=4", "--data", "soak=1")


@dataclass
class Tally:
    """What the strikes hit: {fault: {outcome: count}}; outcome is where the host was when the dust had settled."""

    clean: float = 0.0
    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: {fault: Counter() for fault in FAULTS})
    steps: Counter[str] = field(default_factory=Counter)

    def interrupted(self) -> int:
        return sum(count for kinds in self.outcomes.values() for kind, count in kinds.items() if kind != "untouched")

    def hit_enough(self) -> bool:
        """A kill test that hardly ever interrupts anything proves nothing."""
        return self.interrupted() * 3 >= self.total()

    def total(self) -> int:
        return sum(sum(kinds.values()) for kinds in self.outcomes.values())

    def text(self) -> str:
        lines = [
            f"a clean activation takes {self.clean:.1f} s; {self.total()} strikes, {self.interrupted()} in the middle"
        ]
        for fault, kinds in self.outcomes.items():
            lines.append(f"  {fault:22} " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())))
        lines.append("  the furthest step that the activations came to:")
        lines += [f"    {step:12} {'#' * count} {count}" for step, count in self.steps.most_common()]
        return "\n".join(lines)


def words(host: str, release: str) -> list[str]:
    return ["tasks/rollback.py", "--limit", host, "--data", f"release={release}", *QUICK]


def strike(host: str, fault: str, process: subprocess.Popen) -> None:
    if fault == "kill the controller":
        process.kill()
    elif fault == "kill the host program":
        on(host, "pkill -9 -f 'switch activat[e]' || true")
    elif fault == "cut the network":
        lab.run("docker", "network", "disconnect", lab.AIRGAP[0], host)
    else:
        lab.run("docker", "kill", host)


def mend(host: str, fault: str, process: subprocess.Popen) -> None:
    if fault == "cut the network":
        time.sleep(6)  # longer than the host waits for its confirmation
        address = lab.gpu(int(host[-1]))[1]
        lab.run("docker", "network", "connect", "--ip", address, lab.AIRGAP[0], host)
        process.kill()  # now the host hears of it, and the lease ends at once, not after its half minute of silence
    elif fault == "power off":
        process.kill()
        lab.run("docker", "start", host)
        until("the engine is back", lambda: lab.answers("docker", "exec", host, "docker", "info"))
    process.wait(timeout=120)


def clean(host: str, release: str) -> None:
    """Every blob of the release has the hash that is its name, and its directory is whole."""
    on(host, f"cd {STORE}/blobs && for b in *; do echo $b $b; done | sha256sum -c --quiet")
    on(host, f"test -d {STORE}/releases/{release}/hub")


def round_of(
    host: str, number: int, fault: str, pair: tuple[str, str], tally: Tally, dice: random.Random, says: dict[str, str]
) -> None:
    old = current(host)
    new = pair[1] if old == pair[0] else pair[0]
    seen = len(journal(host))
    process = subprocess.Popen(
        command(*words(host, new), inventory=INVENTORY), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until("the activation begins", lambda: len(journal(host)) > seen)
    time.sleep(dice.uniform(0, 1.1 * tally.clean))
    strike(host, fault, process)
    if fault == "kill the host program":
        process.wait(timeout=300)
    mend(host, fault, process)
    busy = "pgrep -f 'switch (activat[e]|recove[r])' || true"
    until("the host has ended what it was at", lambda: not on(host, busy).strip(), 120)
    steps = [entry["step"] for entry in journal(host)[seen:]]
    came_to = [step for step in steps if step not in ("revert", "revert again", "withdrawn", "not begun")]
    tally.steps[came_to[-1] if came_to else "not begun"] += 1
    here = current(host)
    assert here in (old, new), f"{here} is neither old nor new"
    clean(host, old)
    clean(host, new)
    pending = on(host, f"test -e {STORE}/state/pending && echo pending || true").strip()
    begun = "begin" in steps
    kind = "untouched" if not begun else "pending" if pending else "confirmed" if here == new else "withdrawn"
    tally.outcomes[fault]["untouched" if kind == "confirmed" and process.returncode == 0 else kind] += 1
    if not pending:
        until("the service answers with its release", lambda: weights(host) == says[here], 60)
    until("nobody holds the host", lambda: not on(host, "pgrep -f 'lease hol[d]' || true").strip(), 60)
    again = fleet(*words(host, new))
    assert again.code == 0, f"round {number}, {fault}: {again.said[-3000:]}"
    assert current(host) == new and weights(host) == says[new]
    before = container(host)
    last = fleet(*words(host, new))
    assert last.code == 0 and last.host(host)["state"] == "unchanged" and container(host) == before
    print(f"round {number}: {fault}, {kind}, journal: {' '.join(steps) or 'nothing'}", flush=True)


def rounds(count: int, seed: int, pair: tuple[str, str], host: str = HOST) -> Tally:
    """`pair`: two release ids that the host has; -> what was hit. AssertionError on the first host that is neither old nor new."""
    dice, tally, says = random.Random(seed), Tally(), {}
    for release in (pair[1], pair[0]):
        run = fleet(*words(host, release))
        assert run.code == 0, run.said[-3000:]
        if run.host(host)["state"] == "active":
            took = next(phase for phase in run.host(host)["phases"] if phase["phase"] == "activate")
            tally.clean = took["end"] - took["start"]
        says[release] = weights(host)
    assert len(set(says.values())) == 2 and tally.clean
    order = [FAULTS[i % len(FAULTS)] for i in range(count)]
    dice.shuffle(order)
    for number, fault in enumerate(order, 1):
        round_of(host, number, fault, pair, tally, dice, says)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.e2e.kill")
    parser.add_argument("rounds", type=int, nargs="?", default=200)
    parser.add_argument("seed", type=int, nargs="?", default=int(time.time()))
    parser.add_argument("--host", default=HOST, choices=["lab-gpu1", "lab-gpu3", "lab-gpu4"])
    args = parser.parse_args()
    here = current(args.host)
    other = next(name for name in on(args.host, f"ls {STORE}/releases").split() if name != here)
    tally = rounds(args.rounds, args.seed, (here, other), args.host)
    print(f"seed {args.seed}: {tally.text()}")
    return 0 if tally.hit_enough() else 1


if __name__ == "__main__":
    sys.exit(main())
