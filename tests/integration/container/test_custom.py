"""The smoke test of a custom model: the operator's own command, run on a release that is really there, without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tasks.shared.lock import parse_lock
from tasks.shared.vectors import unpack
from tests.lab.images import answers

pytestmark = [
    pytest.mark.integration,
    # The kernel counts what the whole network namespace sends, and a container has one of its own.
    pytest.mark.skipif(not answers("sh", "-c", "unshare --net true"), reason="needs a network namespace of its own"),
]
WIDE = {"queries": ["one", "two"], "vectors": {"query0": [[1.0] * 320], "query1": [[0.5] * 320, [0.25] * 320]}}


@pytest.fixture
def smoke(host, document, contents):
    """smoke(what the command prints, its exit code, goldens): the answer of the program, and its exit code."""
    host.incoming(contents)

    def run(said: object, code: int = 0, goldens: dict | None = None) -> tuple[dict, int]:
        (host.root / "said").write_text(said if isinstance(said, str) else json.dumps(said))
        command = ["sh", "-c", f"cat {host.root}/said; exit {code}"]
        document["serve"] = {**document["serve"], "family": "custom", "dtype": "float32", "smoke_command": command}
        lock = parse_lock(json.dumps(document))
        host.run("store", "admit", document=document)
        root = host.store / "releases" / lock.id
        words = [
            "unshare",
            "--net",
            sys.executable,
            host.tool,
            "smoke",
            "--lock",
            root / "lock.json",
            "--device",
            "cpu",
        ]
        if goldens:
            classes = {goldens["class"]: goldens}
            (host.root / "goldens.json").write_text(json.dumps({"release": lock.id, "classes": classes}))
            words += ["--goldens", host.root / "goldens.json"]
        done = subprocess.run(
            list(map(str, words)), capture_output=True, text=True, env={**os.environ, "HF_HOME": str(root)}, timeout=60
        )
        assert done.stdout, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), done.returncode

    return run


def failing(answer: dict) -> dict[str, str]:
    assert "error" not in answer, answer["error"]
    return {check["name"]: check["detail"] for check in answer["checks"] if not check["ok"]}


def test_vectors_of_any_width_pass_and_equal_their_goldens(smoke):
    answer, code = smoke(WIDE)
    assert (failing(answer), answer["ok"], code, answer["outbound_attempts"]) == ({}, True, 0, 0)
    assert answer["embeddings"]["class"] == "cpu/float32" and answer["embeddings"]["queries"] == ["one", "two"]
    packed = answer["embeddings"]["vectors"]
    assert {name: entry["shape"] for name, entry in packed.items()} == {"query0": [1, 320], "query1": [2, 320]}
    assert unpack(packed["query1"]) == [(0.5,) * 320, (0.25,) * 320]
    again, code = smoke(WIDE, goldens=answer["embeddings"])
    assert code == 0 and again["against"] == "cpu/float32" and again["cosine"]["min"] > 0.9999


def test_vectors_that_differ_from_the_goldens_fail(smoke):
    goldens = smoke(WIDE)[0]["embeddings"]
    other = {**WIDE, "vectors": {**WIDE["vectors"], "query0": [[1.0, -1.0] * 160]}}
    answer, code = smoke(other, goldens=goldens)
    assert code == 1 and set(failing(answer)) == {"embeddings are the goldens'"}
    narrow = {"queries": [], "vectors": {"query0": [[1.0] * 128]}}
    assert set(failing(smoke(narrow, goldens=goldens)[0])) == {"shapes are the goldens'"}


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        ({"query0": [[1.0, 2.0], [1.0]]}, "query0 (2, 1, 2)"),
        ({"query0": [[1.0, 2.0]], "query1": [[1.0, 2.0]], "query2": [[1.0, 2.0, 3.0]]}, "query2 (1, 3)"),
        ({"query0": [[1.0, 2.0]], "query1": []}, "query1 (0,)"),
    ],
)
def test_vectors_of_two_widths_fail_with_or_without_goldens(smoke, vectors, said):
    answer, code = smoke({"queries": ["one"], "vectors": vectors})
    assert code == 1 and failing(answer) == {"all vectors have one width": said} and answer["embeddings"] is None
    answer, code = smoke({"queries": ["one"], "vectors": vectors}, goldens=smoke(WIDE)[0]["embeddings"])
    assert code == 1 and failing(answer) == {"all vectors have one width": said}


def test_a_command_may_embed_nothing_unless_there_are_goldens(smoke):
    answer, code = smoke("all is well\n")
    assert code == 0 and answer["embeddings"] is None and answer["cosine"] is None
    answer, code = smoke("all is well\n", goldens=smoke(WIDE)[0]["embeddings"])
    assert code == 1 and "all is well" in failing(answer)["the smoke command gives vectors"]


def test_a_command_that_fails_is_no_pass_whatever_it_prints(smoke):
    answer, code = smoke(WIDE, code=3)
    assert code == 1 and "exit code 3" in failing(answer)["the smoke command passes"]


def test_a_cache_that_is_not_whole_is_named_and_no_command_is_run(smoke, host, document):
    smoke(WIDE)
    release = parse_lock(json.dumps(document))
    model = release.models[0]
    link = (
        host.store / "releases" / release.id / "hub" / model.folder / "snapshots" / model.commit / "adapter_config.json"
    )
    link.parent.chmod(0o755)
    link.unlink()
    words = ["--lock", host.store / "releases" / release.id / "lock.json", "--device", "cpu"]
    env = {**os.environ, "HF_HOME": str(host.store / "releases" / release.id)}
    answer = host.call("smoke", *words, ok=False, env=env)
    assert "adapter_config.json is missing" in failing(answer)["cache is whole"]
    assert "the smoke command passes" not in {check["name"] for check in answer["checks"]}
