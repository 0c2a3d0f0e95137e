"""Four GPU hosts with the light service: its commands, its answers, its faults."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasks.shared.lock import parse_lock
from tests.e2e.conftest import BASTION, ROOT, Run, command, hub, on, pyinfra
from tests.e2e.service import Service
from tests.lab import lab

INVENTORY = "inventories/lab_fleet.py"
HOSTS = ["lab-gpu1", "lab-gpu2", "lab-gpu3", "lab-gpu4"]
CANARY, OTHERS = HOSTS[0], HOSTS[1:]
STORE, REPO = "/srv/fleet", "docai/plain-tiny"
LOCK = ROOT / "group_data/locks/lab_fleet.json"
GOLDENS = LOCK.with_name("lab_fleet.goldens.json")


def fleet(*words: str, **more) -> Run:
    return pyinfra(*words, **{"inventory": INVENTORY, **more})


def refs() -> dict[str, str]:
    return json.loads(lab.run("docker", "exec", "lab-hub", "cat", f"/lab/data/{REPO}/refs.json"))


TWO = ("v1", "v2")
_git: dict[str, dict[Path, str]] = {}


def lock_version(version: str) -> None:
    """The lock moves to a version of the model, as an operator does it; the second time as git does it."""
    if version not in _git:
        hub("refs", {REPO: {"main": refs()[version]}})
        run = fleet("tasks/lock.py", "--data", "update=true")
        assert run.code == 0, run.said[-2000:]
    for path, text in _git.get(version, {}).items():
        path.write_text(text)


def committed(version: str) -> None:
    """Lock and goldens of a version, kept for the next time."""
    _git[version] = {path: path.read_text() for path in (LOCK, GOLDENS)}


def deploy(version: str | None = None, *words: str) -> Run:
    if version:
        lock_version(version)
    run = fleet("deploy.py", *words)
    assert run.code == 0, run.said[-3000:]
    if version:
        committed(version)
    return run


@dataclass(frozen=True)
class Settled:
    """All hosts in order on `release`, which is `version` of the model; `next` is the version to go to."""

    version: str
    release: str
    next: str


def looks(name: str) -> str:
    """A host as a test finds it: what its store holds, what its service is made from, and whether that is healthy."""
    store = "find blobs releases ! -type d -printf '%p %s %C@\\n' | sort"
    state = "find state/$(cat current) state/pending state/frozen -printf '%p %s\\n' 2>&1 | sort"
    files = "find . -maxdepth 1 -type f ! -name '.*' ! -name journal.jsonl -exec grep -H '' {} + | sort; sha256sum /srv/light/docker-compose*"
    about = '{{.State.Health.Status}} {{.Image}} {{index .Config.Labels "com.docker.compose.config-hash"}}'
    service = f"docker ps -aq --filter name=light-backend-1 | xargs -r docker inspect -f '{about}'"
    return on(name, f"cd {STORE}; {store}; {state}; {files}; {service}")


_order: dict[str, dict[str, str]] = {}


def settle(version: str = "") -> Settled:
    """Every host on a version, else on that of the two which most of them have; a fleet that looks as it did then is left alone."""
    ids = {parse_lock(_git[name][LOCK]).id: name for name in TWO if name in _git}
    here = Counter(ids.get(current(name), TWO[0]) for name in HOSTS)
    version = version or here.most_common(1)[0][0]
    lock_version(version)
    if _order.get(version) != {name: looks(name) for name in HOSTS}:
        deploy(version, "--data", 'waves=["100%"]')
        _order[version] = {name: looks(name) for name in HOSTS}
    wanted = parse_lock(LOCK.read_text()).id
    assert {current(name) for name in HOSTS} == {wanted}
    return Settled(version, wanted, next(name for name in TWO if name != version))


def light(name: str) -> Service:
    return Service(name, INVENTORY, STORE, "light", 8100)


def current(name: str) -> str:
    return light(name).current()


def weights(name: str) -> str:
    """What the running service embeds with, by its own word."""
    return json.loads(light(name).answer())["weights"]


def container(name: str) -> str:
    return light(name).container()


def journal(name: str) -> list[dict]:
    return light(name).journal()


POLL = """
import http.client, json, select, sys, time, urllib.request
ended = []
while not ended:
    begun = time.time()
    try:
        with urllib.request.urlopen("http://127.0.0.1:8100/embed", b'{"query": "invoice"}', timeout=2) as answer:
            said = json.load(answer)["weights"]
    except (OSError, ValueError, http.client.HTTPException):
        said = "none"
    print(f"{begun:.3f} {said}", flush=True)
    ended = select.select([sys.stdin], [], [], max(0, 0.1 - (time.time() - begun)))[0]
"""


@contextmanager
def polled(*names: str):
    """Ask the services every 100 ms, on the hosts themselves; yields {host: [(seconds, weights or "none")]}, filled at the end."""
    found: dict[str, list[tuple[float, str]]] = {name: [] for name in names}
    words = ["docker", "exec", "-i"]
    running = {
        n: subprocess.Popen(
            [*words, n, "python3", "-c", POLL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in names
    }
    try:
        yield found
    finally:
        for name, process in running.items():
            for line in process.communicate(timeout=30)[0].splitlines():
                if len(line.split()) == 2:
                    found[name].append((float(line.split()[0]), line.split()[1]))


def longest_gap(answers: list[tuple[float, str]]) -> float:
    """Seconds between two answers that came, at most."""
    good = [when for when, said in answers if said != "none"]
    return max((b - a for a, b in itertools.pairwise(good)), default=float("inf"))


@contextmanager
def variant(of: str = INVENTORY, **hosts: dict):
    """An inventory with more data on some hosts (names with _ for -): -> its path."""
    text = Path(ROOT / of).read_text()
    for name, more in hosts.items():
        label = name.replace("_", "-")
        text += f'\nfor _name, _data in gpu_hosts:\n    if _name == "{label}":\n        _data.update({more!r})\n'
    files = {ROOT / "inventories/lab_variant.py": text}
    files[ROOT / "group_data/lab_variant.py"] = (ROOT / "group_data" / Path(of).name).read_text()
    for path, content in files.items():
        path.write_text(content)
    try:
        yield "inventories/lab_variant.py"
    finally:
        for path in files:
            path.unlink()


def until(what: str, check, within: float = 60) -> None:
    deadline = time.monotonic() + within
    while not check():
        assert time.monotonic() < deadline, f"{what}: not within {within} s"
        time.sleep(0.3)


def begin() -> None:
    """Four hosts that had nothing, and two versions proven."""
    lab.up(4)
    hub("reset", {})
    for path in (LOCK, GOLDENS):
        path.unlink(missing_ok=True)
    for name in [BASTION, *HOSTS]:
        on(name, f"rm -rf {STORE}; docker rm -f light-backend-1 2>/dev/null; rm -f /srv/light/*override*")
    hub("refs", {REPO: {"main": refs()["v1"]}})
    assert fleet("tasks/lock.py").code == 0
    for version in TWO:  # each is proven once
        deploy(version, "--data", 'waves=["100%"]')


def table(name: str, script: str = "") -> str:
    return on(
        name,
        f"find {STORE} -type f ! -name '.*lock' -printf '%p %T@ %s\\n' | sort; cat /srv/light/*override*; {script}",
    )


def background(*words: str) -> subprocess.Popen:
    return subprocess.Popen(
        command(*words, inventory=INVENTORY), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
