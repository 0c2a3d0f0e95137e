"""The main job, in the order of an operator's first day: lock, deploy, kill, again, damage, the next version."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import pytest

from tasks.shared.lock import parse_lock
from tasks.shared.spaces import embedding_space
from tests.e2e.conftest import (
    BASTION,
    GPU1,
    GPU2,
    LOCK,
    MIXED,
    ROOT,
    STORES,
    command,
    commits,
    embedding,
    hub,
    on,
    pyinfra,
)

POISON = "hf_good_poison_4f1e"


def total() -> int:
    return sum(parse_lock(LOCK.read_text()).blobs().values())


def sent() -> int:
    """Bytes that left the bastion towards the GPU hosts, by its interface's own counter."""
    device = "$(ip -o -4 addr show to 10.77.2.10 | cut -d' ' -f2)"
    return int(on(BASTION, f"cat /sys/class/net/{device}/statistics/tx_bytes"))


def test_without_a_lock_deploy_is_one_clear_error(machines):
    run = pyinfra("deploy.py")
    assert run.code == 1
    assert "group_data/locks/lab.json: does not exist" in run.said
    assert "pyinfra -y inventories/lab.py tasks/lock.py" in run.said
    assert "Traceback" not in run.said


def test_lock_pins_commits_hashes_and_image(machines):
    assert pyinfra("tasks/lock.py", HF_TOKEN=POISON).code == 0
    document = json.loads(LOCK.read_text())
    adapter, base = document["models"]
    assert adapter["commit"] == commits()["v1"] and adapter["base"] == base["repo"] == "docai/colpaligemma-tiny-base"
    assert [name for name in base["files"] if name.endswith(".safetensors")] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    taken = set(adapter["files"])
    assert "adapter_model.safetensors" in taken and not any(name.startswith("checkpoint") for name in taken)
    assert "config.json" in adapter["absent"]


def test_the_same_inputs_give_the_same_bytes(machines):
    before = LOCK.read_bytes()
    LOCK.unlink()
    assert pyinfra("tasks/lock.py").code == 0
    assert LOCK.read_bytes() == before


def test_preflight_says_everything_at_once_and_nothing_moves(machines):
    on(GPU1, "mv /usr/bin/rrsync /usr/bin/rrsync.away; mv /srv/docai /srv/docai.away")
    run = pyinfra("deploy.py")
    on(GPU1, "mv /usr/bin/rrsync.away /usr/bin/rrsync; mv /srv/docai.away /srv/docai")
    assert run.code == 1
    assert "rrsync is missing" in run.host(GPU1)["why"] and "no compose file" in run.host(GPU1)["why"]
    assert run.host(GPU2)["state"] == "held"
    assert on(BASTION, "ls /srv/models/releases").strip() == ""


def test_dry_says_the_bytes_by_host_and_changes_nothing(machines):
    run = pyinfra("--dry", "deploy.py")
    assert run.code == 0 and f"\nwave 1: {GPU1}\nwave 2: {GPU2}\n" in run.said, run.said[-2000:]
    for name in (GPU1, GPU2):
        assert run.host(name)["state"] == "would change" and run.host(name)["moved_bytes"] == total()
        assert on(name, f"ls {STORES[name]} 2>/dev/null | wc -l").strip() == "0"


def test_a_killed_push_goes_on_where_it_was(machines):
    before = sent()
    process = subprocess.Popen(
        command("deploy.py", "--data", "bandwidth_limit=60000"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    size = f"du -sb {STORES[GPU1]}/incoming 2>/dev/null | cut -f1 || true"
    while int(on(GPU1, size).strip() or 0) < total() * 0.3:
        assert process.poll() is None and time.monotonic() < deadline, "the push never came to 30 %"
        time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = pyinfra("deploy.py", HF_TOKEN=POISON)
    assert run.code == 0, run.said[-3000:]
    assert run.report["verdict"] == "ok"
    space = embedding_space(parse_lock(LOCK.read_text()))
    for name in (GPU1, GPU2):
        row = run.host(name)
        assert row["space"] == space and row["since"] and {"torch", "transformers"} <= set(row["versions"])
        assert row["state"] == "active" and row["cosine"] > 0.9999 and row["outbound_attempts"] == 0
        assert 0 < row["moved_bytes"] < 0.9 * total(), "nothing was resumed"
        assert row["moved_bytes"] + row["there_bytes"] >= total()
    assert sent() - before < 1.3 * 2 * total()


def test_the_service_loads_by_name_with_no_network(machines):
    script = "from colpali_engine.models import ColPali, ColPaliProcessor as P; n='docai/colpali-tiny'; P.from_pretrained(n); ColPali.from_pretrained(n); print('loaded')"
    for name in (GPU1, GPU2):
        assert (
            on(name, f'docker exec docai-backend-1 /opt/venv/bin/python -c "{script}" 2>/dev/null').strip() == "loaded"
        )
        assert len(embedding(name)[0]) == 128


def test_a_second_run_changes_nothing_and_says_so(machines):
    ids = {name: on(name, "docker ps -q --no-trunc") for name in (GPU1, GPU2)}
    before = sent()
    run = pyinfra("deploy.py")
    assert run.code == 0
    assert {run.host(name)["state"] for name in (GPU1, GPU2)} == {"unchanged"}
    assert all(run.host(name)["moved_bytes"] == 0 for name in run.report["hosts"])
    assert "Success" not in run.said.replace("   Success   ", "")
    assert {name: on(name, "docker ps -q --no-trunc") for name in (GPU1, GPU2)} == ids
    assert sent() - before < 1_000_000


def test_a_plain_compose_up_keeps_everything(machines):
    before = on(GPU1, "docker ps -q --no-trunc")
    on(GPU1, "cd /srv/docai && docker compose up -d 2>/dev/null")
    assert on(GPU1, "docker ps -q --no-trunc") == before


def test_a_changed_byte_is_named_and_repaired_by_that_blob_alone(machines):
    file = json.loads(LOCK.read_text())["models"][0]["files"]["adapter_model.safetensors"]
    path = f"{STORES[GPU2]}/blobs/{file['sha256']}"
    flip = (
        f"import os; f = open('{path}', 'r+b'); f.seek(-9, 2); b = f.read(1); f.seek(-9, 2); f.write(bytes([b[0] ^ 1]))"
    )
    on(GPU2, f'touch -r {path} /tmp/when; python3 -c "{flip}"; touch -r /tmp/when {path}')
    run = pyinfra("deploy.py", "--data", "verify=full")
    assert run.code == 0, run.said[-3000:]
    assert "damaged: docai/colpali-tiny: adapter_model.safetensors" in run.said
    assert run.host(GPU2)["moved_bytes"] == file["size"] and run.host(GPU1)["moved_bytes"] == 0
    assert on(GPU2, f"sha256sum {path}").split()[0] == file["sha256"]
    deployed = run.report["release"]
    mounted = f"/models/hf/hub/models--docai--colpali-tiny/blobs/{file['sha256']}"
    assert on(GPU2, f"docker exec docai-backend-1 sha256sum {mounted}").split()[0] == file["sha256"]
    assert on(GPU2, f"cat {STORES[GPU2]}/current").strip() == deployed


def test_dry_lock_says_what_moved_upstream_and_the_lock_stays(machines):
    hub("refs", {"docai/colpali-tiny": {"main": commits()["v2"]}})
    before = LOCK.read_bytes()
    run = pyinfra("--dry", "tasks/lock.py")
    assert f"{commits()['v1'][:12]} -> {commits()['v2'][:12]}" in run.said
    assert pyinfra("tasks/lock.py").code == 0
    assert LOCK.read_bytes() == before


def test_version_2_moves_only_what_differs_and_answers_otherwise(machines):
    old, first = json.loads(LOCK.read_text()), embedding(GPU1)
    assert pyinfra("tasks/lock.py", "--data", "update=true").code == 0
    new = json.loads(LOCK.read_text())
    assert old["models"][1] == new["models"][1]
    known = {f["sha256"] for model in old["models"] for f in model["files"].values()}
    differs = {
        f["sha256"]: f["size"] for model in new["models"] for f in model["files"].values() if f["sha256"] not in known
    }
    refused = pyinfra("deploy.py")  # two waves would answer one index in two spaces
    assert refused.code == 1 and refused.host(GPU1)["state"] == refused.host(GPU2)["state"] == "unfit"
    assert "embedding_space_change" in refused.host(GPU1)["why"] and embedding(GPU1) == first
    run = pyinfra("deploy.py", *MIXED)
    assert run.code == 0, run.said[-3000:]
    for name in (GPU1, GPU2):
        assert run.host(name)["moved_bytes"] == sum(differs.values()) < 0.01 * total()
        assert on(name, f"cat {STORES[name]}/previous").strip() != run.report["release"]
    second = embedding(GPU1)
    assert second != first and embedding(GPU2) == second


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_ends_with_a_table_and_its_code(machines, name, code):
    busy = subprocess.Popen(["docker", "exec", GPU2, "flock", f"{STORES[GPU2]}/.lock", "sleep", "45"])
    while on(GPU2, f"flock -n {STORES[GPU2]}/.lock true && echo free || true"):
        time.sleep(0.1)
    process = subprocess.Popen(
        command("deploy.py", "--data", "verify=full"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = ""
    for line in process.stdout:  # the run is under way, and a store that is busy keeps it there
        said += line
        if "Starting operation: Stage" in line:
            break
    time.sleep(1)
    process.send_signal(signal.Signals[name])
    said += process.communicate(timeout=30)[0]
    busy.kill()
    assert process.returncode == code
    assert f"stopped by {name}" in said and "Run again, once fixed: pyinfra -y" in said
    last = json.loads((ROOT / "reports/last.json").read_text())["hosts"][GPU2]["phases"][-1]
    assert (last["phase"], last["ok"]) == ("stage", False) and last["end"] - last["start"] > 0.5, "what was cut is told"
    assert pyinfra("deploy.py").code == 0


def grep(name: str, word: str) -> str:
    places = "/srv /data /etc /var/lib/hfpush /root /home /tmp /var/log"
    return on(name, f"grep -rslaF -e {word} {places} 2>/dev/null || true").strip()


@pytest.mark.parametrize("name", [BASTION, GPU1, GPU2])
def test_the_token_is_on_no_disk(machines, name):
    assert grep(name, POISON) == ""


def test_the_token_grep_finds_a_planted_token(machines):
    on(GPU1, f"echo {POISON} > /srv/planted")
    assert grep(GPU1, POISON) == "/srv/planted"
    on(GPU1, "rm /srv/planted")
