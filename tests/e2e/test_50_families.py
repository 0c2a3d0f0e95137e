"""Other models need no new code: two more families go through lock and deploy by settings alone."""

from __future__ import annotations

import json

import pytest

from tests.e2e.conftest import BASTION, GPU2, LOCK, MIXED, STORES, embedding, on, pyinfra

# One host shows it, the one that is unlike the others. A part of the fleet is always mixed with the rest.
HOST, ONE = GPU2, ("--limit", BASTION, "--limit", GPU2, *MIXED)
# family -> (repository, the class that the backend is to load, how many model repositories the lock holds)
MODELS = {
    "colqwen2": ("docai/colqwen2-tiny", "ColQwen2", 2),
    "colsmol": ("docai/colsmol-tiny", "ColIdefics3", 1),
}


def asked(family: str, **environment: str) -> list[str]:
    """What an operator would write into group_data, by --data."""
    repo, model_class, _ = MODELS[family]
    data = {
        "lock": f"lab_{family}",
        "models": json.dumps([{"repo": repo, "revision": "main"}]),
        "family": family,
        "environment": json.dumps({"MODEL_CLASS": model_class, **environment}),
    }
    return [word for key, value in data.items() for word in ("--data", f"{key}={value}")]


def lock_file(family: str):
    return LOCK.with_name(f"lab_{family}.json")


def inside() -> dict:
    """What the service says of itself."""
    return json.loads(on(HOST, "curl -fsS http://127.0.0.1:8000/health"))


@pytest.fixture(scope="module")
def families(machines):
    """Locks of this run alone."""
    for family in MODELS:
        for path in (lock_file(family), LOCK.with_name(f"lab_{family}.goldens.json")):
            path.unlink(missing_ok=True)


@pytest.mark.parametrize("family", MODELS)
def test_another_family_is_locked_deployed_and_answers(families, family):
    words, (repo, _, repositories) = asked(family), MODELS[family]
    locked = pyinfra("tasks/lock.py", *words)
    assert locked.code == 0, locked.said[-3000:]
    document = json.loads(lock_file(family).read_text())
    assert len(document["models"]) == repositories and document["serve"]["family"] == family
    assert not any(name.startswith("checkpoint") for model in document["models"] for name in model["files"])
    run = pyinfra("deploy.py", *words, *ONE)
    assert run.code == 0, run.said[-3000:]
    row = run.host(HOST)
    assert row["state"] == "active" and row["cosine"] > 0.9999 and row["outbound_attempts"] == 0
    assert on(HOST, f"cat {STORES[HOST]}/current").strip() == run.report["release"]
    assert inside()["model"] == repo and len(embedding(HOST)[0]) == 128
    again = pyinfra("deploy.py", *words, *ONE)
    assert again.code == 0 and again.host(HOST)["state"] == "unchanged"


def test_a_backend_that_loads_another_class_is_withdrawn(families):
    """The positive control: the class is what makes it work."""
    words = asked("colsmol", MODEL_CLASS="ColPali")
    run = pyinfra("deploy.py", *words, *ONE, "--data", "health_deadline=60")
    assert run.code == 1 and run.host(HOST)["state"] == "withdrawn"
    assert inside()["model"] == MODELS["colsmol"][0]


def test_a_chosen_image_processor_reaches_the_service_and_the_lock(families):
    words = [*asked("colqwen2"), "--data", "image_processor=pil"]
    stale = pyinfra("deploy.py", *words, *ONE)
    assert stale.code == 1 and "has another image_processor" in stale.said
    assert pyinfra("tasks/lock.py", *words).code == 0
    assert json.loads(lock_file("colqwen2").read_text())["serve"]["image_processor"] == "pil"
    run = pyinfra("deploy.py", *words, *ONE)
    assert run.code == 0, run.said[-3000:]
    assert inside()["image_processor"] == "Qwen2VLImageProcessorPil"
    smoke = json.loads(on(HOST, f"cat {STORES[HOST]}/state/{run.report['release']}/smoke.json"))
    assert smoke["image_processor"] == "Qwen2VLImageProcessorPil"
