"""Each family's tiny replica, from the Hub to the smoke test: real fetch and admit, real models in the backend's image.

No lab: the Hub stands on loopback, and the image runs by itself with no network.
"""

from __future__ import annotations

import filecmp
import json
import subprocess
from pathlib import Path

import pytest

from tasks.shared.lock import parse_lock
from tasks.shared.spaces import embedding_space
from tests.integration.conftest import Machine
from tests.lab import hub as stand_in
from tests.lab.hub_repo import commit
from tests.lab.images import BACKEND, HERE, answers

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(
        not answers("sh", "-c", f"docker image inspect {BACKEND}"), reason=f"needs a Docker Engine that has {BACKEND}"
    ),
]
PYTHON = "/opt/venv/bin/python"
# repository -> family
REPOS = {"docai/colqwen2-tiny": "colqwen2", "docai/colsmol-tiny": "colsmol", "docai/colsmol-both-tiny": "colsmol"}


def in_image(*words: str, mounts: dict[str, object], environment: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    flags = ["--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", "-e", "HOME=/tmp"]
    for inside, outside in mounts.items():
        flags += ["-v", f"{outside}:{inside}:{'rw' if inside == '/data' else 'ro'}"]
    for pair in environment:
        flags += ["-e", pair]
    command = ["docker", "run", *flags, BACKEND, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def made(out: Path) -> Path:
    out.mkdir()
    made = in_image(PYTHON, "-B", "/lab/replica.py", "/data", mounts={"/data": out, "/lab": HERE})
    assert made.returncode == 0, made.stderr[-2000:]
    return out


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    return made(tmp_path_factory.mktemp("replicas") / "data")


@pytest.fixture(scope="module")
def endpoint(replicas):
    servers = stand_in.serve(replicas, 0, 0, bind="127.0.0.1")
    stand_in.FAULTS.clear()
    yield f"http://127.0.0.1:{servers[0].server_address[1]}"
    for server in servers:
        server.shutdown()
        server.server_close()


class Released:
    """A release of one repository in a store of its own, and the smoke test on it."""

    def __init__(self, machine: Machine, document: dict):
        machine.run("store", "admit", document=document)
        self.machine, self.lock = machine, parse_lock(json.dumps(document))
        self.root = machine.store / "releases" / self.lock.id

    def smoke(self, goldens: dict | None = None, change: str = "") -> dict:
        script = f"import sys\nsys.path.insert(0, '/tool.pyz')\nfrom tasks.remote.container import smoke\n{change}\nsys.exit(smoke.main(sys.argv[1:]))\n"
        (self.machine.root / "run.py").write_text(script)
        mounts = {"/models/hf": self.root, "/tool.pyz": self.machine.tool}
        words = ["--lock", "/models/hf/lock.json", "--device", "cpu"]
        if goldens:
            path = self.machine.root / "goldens.json"
            path.write_text(json.dumps({"release": self.lock.id, "classes": {goldens["class"]: goldens}}))
            words += ["--goldens", "/goldens.json"]
            mounts["/goldens.json"] = path
        mounts["/run.py"] = self.machine.root / "run.py"
        places = ("HF_HOME=/models/hf", "HF_HUB_CACHE=/models/hf/hub", "HF_HUB_OFFLINE=1")
        done = in_image(PYTHON, "/run.py", *words, mounts=mounts, environment=places)
        assert done.stdout, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def released(host, endpoint, document, contents):
    """released(repo, revision, …serve): resolved, fetched, admitted; the image's blobs are made up."""
    for sha256, data in contents.items():
        (host.store / "blobs" / sha256).write_bytes(data)

    def work(repo: str, revision: str = "main", **serve: str) -> Released:
        asked = {"token": None, "endpoint": endpoint, "xet": False, "models": [{"repo": repo, "revision": revision}]}
        answer = host.run("fetch", "resolve", document=asked)
        served = {"model": repo, "family": REPOS[repo], "dtype": "float32", "attention": "sdpa", **serve}
        whole = {**document, "models": answer["models"], "asked": answer["asked"], "serve": served}
        host.run("fetch", "download", document={**asked, "lock": whole})
        return Released(host, whole)

    return work


def failing(answer: dict) -> set[str]:
    assert "error" not in answer, answer["error"]
    return {check["name"] for check in answer["checks"] if not check["ok"]}


def test_two_runs_make_the_same_replicas(replicas, tmp_path):
    again = made(tmp_path / "again")
    names = sorted(str(path.relative_to(replicas)) for path in replicas.rglob("*") if path.is_file())
    assert len(names) > 50
    assert filecmp.cmpfiles(replicas, again, names, shallow=False) == (names, [], [])


@pytest.mark.parametrize("repo", REPOS)
def test_a_family_loads_and_embeds_and_equals_its_goldens(released, repo):
    one = released(repo)
    answer = one.smoke()
    assert failing(answer) == set() and answer["ok"] and answer["outbound_attempts"] == 0
    assert (
        answer["image_processor"]
        == {"colqwen2": "Qwen2VLImageProcessor", "colsmol": "Idefics3ImageProcessorPil"}[REPOS[repo]]
    )
    shapes = {name: entry["shape"] for name, entry in answer["embeddings"]["vectors"].items()}
    assert all(width == 128 for _, width in shapes.values())
    assert (shapes["page0"] != shapes["page2"]) is (REPOS[repo] == "colqwen2")  # as many vectors as the page is large
    assert ("the adapter changes the output" in {c["name"] for c in answer["checks"]}) is (
        one.lock.served.role == "adapter"
    )
    again = one.smoke(answer["embeddings"])
    assert again["ok"] and again["cosine"]["min"] > 0.9999


def test_lora_weights_that_stay_behind_are_seen(replicas, released):
    repo = "docai/colqwen2-tiny"
    top = replicas / repo / "commits" / json.loads((replicas / repo / "refs.json").read_text())["v1"]
    files = {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}
    weights = files["adapter_model.safetensors"]
    assert weights.count(b"model.layers.0.") == 14
    files["adapter_model.safetensors"] = weights.replace(b"model.layers.0.", b"model.strata.0.")
    commit(replicas, repo, files, ["renamed"])
    assert failing(released(repo, "renamed").smoke()) == {"no key is missing or unexpected"}


def test_an_adapter_that_is_not_applied_is_seen(released):
    change = """
from tasks.remote.container import families
real = families.by_name
families.by_name = lambda lock, options: (families.base_alone(lock, options)[0], real(lock, options)[1])
from tasks.remote.container import colpali
"""
    found = failing(released("docai/colqwen2-tiny").smoke(change=change))
    assert found == {"the adapter changes the output", "by name and by commit are the same model"}


def test_full_weights_beside_an_adapter_are_not_what_its_name_loads(released):
    change = """
from tasks.remote.container import families
def own(lock, options):
    top = f"/models/hf/hub/{lock.served.folder}/snapshots/{lock.served.commit}"
    return families.classes(lock)[0].from_pretrained(top, **options).eval(), families.load_processor(lock)
families.by_name = own
from tasks.remote.container import colpali
"""
    found = failing(released("docai/colsmol-both-tiny").smoke(change=change))
    assert found == {"by name and by commit are the same model"}


def test_weights_that_come_from_elsewhere_are_seen_though_they_are_the_same(released):
    change = """
import shutil
from tasks.remote.container import families
def copied(lock, options):
    top = f"/models/hf/hub/{lock.served.folder}/snapshots/{lock.served.commit}"
    shutil.copytree(top, "/tmp/copy")
    return families.classes(lock)[0].from_pretrained("/tmp/copy", **options).eval(), families.load_processor(lock)
families.by_name = copied
from tasks.remote.container import colpali
"""
    # With the dtype that the weights have: their file stays mapped.
    answer = released("docai/colsmol-tiny", dtype="bfloat16").smoke(change=change)
    assert failing(answer) == {"every file read lies in the release"}
    assert "/tmp/copy/model.safetensors" in str(answer["checks"])


def test_a_chosen_image_processor_is_used_and_is_another_space_where_it_lacks_the_filter(released):
    default = released("docai/colsmol-tiny")
    goldens = default.smoke()["embeddings"]
    chosen = released("docai/colsmol-tiny", image_processor="torchvision")
    assert embedding_space(chosen.lock) != embedding_space(default.lock)
    answer = chosen.smoke(goldens)
    assert answer["image_processor"] == "Idefics3ImageProcessor"
    assert failing(answer) >= {"embeddings are the goldens'"} and answer["cosine"]["mean"] < 0.999


def test_an_image_processor_that_cannot_be_had_is_not_replaced_in_silence(released):
    change = "import transformers.utils.import_utils as u\nu.is_torchvision_available = lambda: False\n"
    change += "import transformers.models.auto.image_processing_auto as a\na.is_torchvision_available = lambda: False\n"
    change += "real = a._load_class_with_fallback\na._load_class_with_fallback = lambda m, b: real(m, 'pil')\n"
    answer = released("docai/colqwen2-tiny", image_processor="torchvision").smoke(change=change)
    assert failing(answer) == {"the image processor is torchvision's"}


WIDTHS = """
import json, sys
sys.path.insert(0, "/tool.pyz")
import torch
from tasks.remote.container.colpali import examine
from tasks.remote.container.report import Checks

def vectors(width, odd=None):
    torch.manual_seed(1)
    names = ("page0", "page1", "query0")
    found = {name: torch.nn.functional.normalize(torch.randn(4, width), dim=1) for name in names}
    return {**found, **({"query0": torch.nn.functional.normalize(torch.randn(4, odd), dim=1)} if odd else {})}

def failing(ours):
    checks = Checks()
    examine(checks, ours, ours)
    return [check.name for check in checks.all if not check.ok]

print(json.dumps([failing(vectors(128)), failing(vectors(320)), failing(vectors(320, odd=128))]))
"""


def test_a_model_of_another_width_is_sound_and_one_of_two_widths_is_not(host, tmp_path):
    (tmp_path / "widths.py").write_text(WIDTHS)
    done = in_image(PYTHON, "/widths.py", mounts={"/widths.py": tmp_path / "widths.py", "/tool.pyz": host.tool})
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == [[], [], ["all vectors have one width"]]
