"""A service on a lab host, read back by docker exec: never through the code under test."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass

from tests.e2e.conftest import on
from tests.lab import lab


@dataclass(frozen=True)
class Service:
    """A service on a host, as its inventory deploys it."""

    host: str
    inventory: str
    store: str
    project: str
    port: int

    def current(self) -> str:
        return on(self.host, f"cat {self.store}/current").strip()

    def other(self) -> str | None:
        """Another release that lies in the host's store, of other weights than the one that it serves; None when there is none."""
        if not lab.answers("docker", "exec", self.host, "test", "-e", f"{self.store}/current"):
            return None
        weights = {}
        for release in on(self.host, f"ls {self.store}/releases").split():
            lock = json.loads(on(self.host, f"cat {self.store}/releases/{release}/lock.json"))
            if lock["serve"].get("delivery", "mount") != "mount":
                continue
            files = {name: about for model in lock["models"] for name, about in model["files"].items()}
            weights[release] = {about["sha256"] for name, about in files.items() if name.endswith(".safetensors")}
        here = weights.get(self.current())
        return next((release for release in weights if weights[release] != here), None)

    def container(self) -> str:
        label = f"label=com.docker.compose.project={self.project}"
        return on(self.host, f"docker ps -q --no-trunc --filter {label}").strip()

    def journal(self) -> list[dict]:
        return [json.loads(line) for line in on(self.host, f"cat {self.store}/journal.jsonl").splitlines()]

    def wait_for_step(self, seen: int) -> None:
        """Until the journal has more than `seen` lines: at once, as a second of delay would spare the first steps every time."""
        words = f"timeout 60 tail -n +{seen + 1} -F {self.store}/journal.jsonl"
        with subprocess.Popen(["docker", "exec", self.host, "sh", "-c", words], stdout=subprocess.PIPE) as tail:
            assert tail.stdout and tail.stdout.readline(), "no activation began within 60 s"
            tail.kill()

    def answer(self) -> str:
        """What it answers to one query, asked on the host itself, "" where nobody does: two releases answer differently."""
        ask = ["curl", "-fsS", "-m", "5", "-d", '{"query": "invoice"}', f"http://127.0.0.1:{self.port}/embed"]
        return subprocess.run(["docker", "exec", self.host, *ask], stdout=subprocess.PIPE, text=True).stdout.strip()

    def clean(self, *releases: str) -> None:
        """Every blob of the store has the hash that is its name, and the releases' directories are whole."""
        on(self.host, f"cd {self.store}/blobs && for b in *; do echo $b $b; done | sha256sum -c --quiet")
        for release in releases:
            on(self.host, f"test -d {self.store}/releases/{release}/hub")
