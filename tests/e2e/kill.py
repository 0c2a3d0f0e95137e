"""The kill test (after ostree's): interrupt activations at random times, in four ways; every host must come out old or new.

    python3 -m tests.e2e.kill [ROUNDS] [SEED]     needs the lab with four GPU hosts, deployed twice (tests/e2e/test_30_rollouts.py)

A clean activation takes T seconds; each round strikes at a random time within 1.1 T of its beginning. Then: old or new, complete, hashes
clean; one more run converges; the next changes nothing. The histogram tells whether the strikes hit anything. Services on several
hosts are struck at once: a round is waiting for the most part.
"""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.e2e.conftest import GPU1, ROOT, STORES, command, on, pyinfra
from tests.e2e.fleet import light, until
from tests.e2e.service import Service
from tests.lab import lab

FAULTS = ("kill the controller", "kill the host program", "cut the network", "power off")
QUICK = ("--data", "confirm_deadline=4", "--data", "soak=1")


# gpu2 is reached through the bastion: what cuts it off is not what is meant here.
LIGHT = [light(name) for name in (GPU1, "lab-gpu3", "lab-gpu4")]
TORCH = Service(GPU1, "inventories/lab.py", STORES[GPU1], "docai", 8000)


@dataclass
class Tally:
    """What the strikes hit: {fault: {outcome: count}}; outcome is where the host was when the dust had settled."""

    clean: list[float] = field(default_factory=list)  # seconds of a clean activation, a service each
    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: {fault: Counter() for fault in FAULTS})
    steps: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        self.clean += other.clean
        self.steps += other.steps
        for fault in FAULTS:
            self.outcomes[fault] += other.outcomes[fault]

    def interrupted(self) -> int:
        return sum(count for kinds in self.outcomes.values() for kind, count in kinds.items() if kind != "untouched")

    def hit_enough(self) -> bool:
        """A kill test that hardly ever interrupts anything proves nothing."""
        return self.interrupted() * 3 >= self.total()

    def total(self) -> int:
        return sum(sum(kinds.values()) for kinds in self.outcomes.values())

    def text(self) -> str:
        took = ", ".join(f"{seconds:.1f} s" for seconds in self.clean)
        lines = [f"a clean activation takes {took}; {self.total()} strikes, {self.interrupted()} in the middle"]
        for fault, kinds in self.outcomes.items():
            lines.append(f"  {fault:22} " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())))
        lines.append("  the furthest step that the activations came to:")
        lines += [f"    {step:12} {'#' * count} {count}" for step, count in self.steps.most_common()]
        return "\n".join(lines)


def move(service: Service, release: str) -> list[str]:
    """The words that take a service to a release that its host has."""
    return ["tasks/rollback.py", "--limit", service.host, "--data", f"release={release}", *QUICK]


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


def a_round(service: Service, fault: str, pair: tuple[str, str], says: Mapping[str, str], after: float) -> tuple:
    """One strike, `after` seconds from an activation's first step; -> (outcome, steps in the host's journal)."""
    host, old = service.host, service.current()
    new = pair[1] if old == pair[0] else pair[0]
    seen = len(service.journal())
    words = command(*move(service, new), inventory=service.inventory)
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    service.wait_for_step(seen)
    time.sleep(after)
    strike(host, fault, process)
    if fault == "kill the host program":
        process.wait(timeout=300)
    mend(host, fault, process)
    busy = "pgrep -f 'switch (activat[e]|recove[r])' || true"
    until("the host has ended what it was at", lambda: not on(host, busy).strip(), 120)
    steps = [entry["step"] for entry in service.journal()[seen:]]
    here = service.current()
    assert here in (old, new), f"{here} is neither old nor new"
    service.clean(old, new)
    pending = lab.answers("docker", "exec", host, "test", "-e", f"{service.store}/state/pending")
    kind = "confirmed" if here == new else "withdrawn"
    kind = "untouched" if "begin" not in steps else "pending" if pending else kind
    if not pending:
        until("the service answers with its release", lambda: service.answer() == says[here], 120)
    until("nobody holds the host", lambda: not on(host, "pgrep -f 'lease hol[d]' || true").strip(), 60)
    again = pyinfra(*move(service, new), inventory=service.inventory)
    assert again.code == 0, again.said[-3000:]
    assert service.current() == new and service.answer() == says[new]
    before = service.container()
    last = pyinfra(*move(service, new), inventory=service.inventory)
    assert last.code == 0 and last.host(host)["state"] == "unchanged" and service.container() == before
    return "untouched" if kind == "confirmed" and process.returncode == 0 else kind, steps


def struck(service: Service, faults: Iterable[str], seed: str, stop: threading.Event) -> Tally:
    """Rounds on one service, between the release that it serves and another that it has."""
    dice, tally, says = random.Random(seed), Tally(), {}
    here, other = service.current(), service.other()
    assert other, f"{service.host} has one release of {service.project}: deploy another one"
    pair = (here, other)
    for release in reversed(pair):
        run = pyinfra(*move(service, release), inventory=service.inventory)
        assert run.code == 0, run.said[-3000:]
        took = next(phase for phase in run.host(service.host)["phases"] if phase["phase"] == "activate")
        tally.clean = [took["end"] - took["start"]]
        says[release] = service.answer()
    assert len(set(says.values())) == 2 and all(says.values())
    for number, fault in enumerate(faults, 1):
        if stop.is_set():
            break
        after = dice.uniform(0, 1.1 * tally.clean[0])
        label = f"{service.host} {service.project}, round {number}: {fault} after {after:.2f} s"
        try:
            kind, steps = a_round(service, fault, pair, says, after)
        except BaseException as found:
            stop.set()
            raise AssertionError(f"{label}: {found}") from found
        came_to = [step for step in steps if step not in ("revert", "revert again", "withdrawn", "not begun")]
        tally.steps[came_to[-1] if came_to else "not begun"] += 1
        tally.outcomes[fault][kind] += 1
        print(f"{label}, {kind}, journal: {' '.join(steps) or 'nothing'}", flush=True)
    return tally


def rounds(counts: Mapping[Service, int], seed: int = 0) -> Tally:
    """So many rounds on each service, all services at once (of different hosts), told with the seed; -> what was hit.

    AssertionError names the first host that was neither old nor new; the others end their round.
    """
    seed = seed or int(time.time())
    print(f"seed {seed}", flush=True)
    stop, whole, faults = threading.Event(), Tally(), itertools.cycle(FAULTS)
    with ThreadPoolExecutor(len(counts)) as pool:
        running = []
        for service, count in counts.items():
            order = list(itertools.islice(faults, count))
            random.Random(f"{seed} {service.host}").shuffle(order)
            running.append(pool.submit(struck, service, order, f"{seed} {service.host} {service.project}", stop))
    for each in running:
        whole.add(each.result())
    print(whole.text(), flush=True)
    return whole


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.e2e.kill")
    parser.add_argument("rounds", type=int, nargs="?", default=200)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    args = parser.parse_args()
    tally = rounds(Counter(itertools.islice(itertools.cycle(LIGHT), args.rounds)), args.seed)
    return 0 if tally.hit_enough() else 1


if __name__ == "__main__":
    sys.exit(main())
