"""What must not happen: a release that is wrong does not serve, a broken host makes no other worse, nothing is silent."""

from __future__ import annotations

import json

import pytest

from tests.e2e.conftest import BASTION, GPU1, GPU2, LOCK, MIXED, ONE, commits, hub, on, pyinfra

GOLDENS = LOCK.with_name("lab.goldens.json")


def container(name: str) -> str:
    return on(name, "docker ps -q --no-trunc --filter name=backend").strip()


@pytest.fixture(scope="module")
def deployed(machines):
    """Both hosts on version 2, whatever ran before."""
    hub("refs", {"docai/colpali-tiny": {"main": commits()["v2"]}})
    assert pyinfra("tasks/lock.py", "--data", "update=true").code == 0
    run = pyinfra("deploy.py", *MIXED)
    assert run.code == 0, run.said[-3000:]
    return run.report["release"]


def test_goldens_of_another_model_stop_the_host_before_the_switch(deployed):
    good = GOLDENS.read_text()
    document = json.loads(good)
    for entry in document["classes"].values():
        vectors = entry["vectors"]
        vectors["page0"], vectors["page1"] = vectors["page1"], vectors["page0"]
    GOLDENS.write_text(json.dumps(document))
    ids = container(GPU1), container(GPU2)
    run = pyinfra("deploy.py", "--data", "verify=full", *ONE)
    GOLDENS.write_text(good)
    assert run.code == 1
    assert "embeddings are the goldens'" in run.host(GPU1)["why"] and "expected at least" in run.host(GPU1)["why"]
    assert (container(GPU1), container(GPU2)) == ids
    assert pyinfra("deploy.py", *ONE).code == 0


def test_an_override_of_somebody_else_is_refused_and_kept(deployed):
    path = "/srv/docai/docker-compose.override.yml"
    on(GPU1, f"cp {path} /tmp/ours; echo 'services: {{}}' > {path}")
    run = pyinfra("deploy.py")
    kept = on(GPU1, f"cat {path}").strip()
    on(GPU1, f"cp /tmp/ours {path}")
    assert run.code == 1 and "is not ours" in run.host(GPU1)["why"] and kept == "services: {}"
    assert pyinfra("deploy.py").code == 0


def test_an_unknown_setting_names_the_nearest_before_any_host_is_touched(deployed):
    run = pyinfra("deploy.py", "--data", "bandwith_limit=3")
    assert run.code == 1 and "'bandwidth_limit'" in run.said and "Traceback" not in run.said


def test_a_host_that_is_gone_stops_the_rollout_and_is_named(deployed):
    from tests.lab.lab import run as outer

    outer("docker", "pause", GPU2)
    try:
        run = pyinfra("deploy.py", "--data", "verify=full")
    finally:
        outer("docker", "unpause", GPU2)
    assert run.code == 1
    assert run.host(GPU2)["state"] == "unreachable"
    assert run.host(GPU1)["state"] == "held"


def in_image(script: str, *mounts: str) -> str:
    """Run Python in the backend image on the bastion, without a network, with the tool and the release mounted."""
    release = on(BASTION, "ls -t /srv/models/releases | head -1").strip()
    tool = on(BASTION, "ls -t /srv/models/tool | head -1").strip()
    words = (
        f"-v /srv/models/releases/{release}:/models/hf:ro -v /srv/models/tool/{tool}:/tool.pyz:ro {' '.join(mounts)}"
    )
    words += " -e HF_HOME=/models/hf -e HF_HUB_OFFLINE=1"
    on(BASTION, f"cat > /tmp/script.py <<'EOS'\n{script}\nEOS")
    command = f"docker run --rm --network none {words} -v /tmp/script.py:/script.py:ro docai/backend:1.0"
    return on(BASTION, f"{command} /opt/venv/bin/python /script.py 2>/dev/null || true").strip()


COUNT = """
import sys; sys.path.insert(0, "/tool.pyz")
import socket
from tasks.remote.container import smoke
counter = smoke.Outbound()
{attempt}
print(counter.count()[0], counter.count()[1])
"""


def test_the_outbound_counter_sees_a_planted_attempt(deployed):
    attempt = "try: socket.create_connection(('10.77.1.5', 443), 1)\nexcept OSError: pass"
    said = in_image(COUNT.format(attempt=attempt))
    assert int(said.split()[0]) >= 1 and "10.77.1.5:443" in said
    assert in_image(COUNT.format(attempt="")).split()[0] == "0"


SMOKE = """
import sys; sys.path.insert(0, "/tool.pyz")
from tasks.remote.container import smoke
{change}
sys.exit(smoke.main(["--lock", "/models/hf/lock.json", "--device", "cpu"]))
"""
HIDE = "-v /tmp/empty:/models/hf/hub/models--docai--colpaligemma-tiny-base:ro"


def smoke_in_image(change: str, *mounts: str) -> dict:
    return json.loads(in_image(SMOKE.format(change=change), *mounts).splitlines()[-1])


def failing(answer: dict) -> set[str]:
    return {check["name"] for check in answer["checks"] if not check["ok"]}


def test_smoke_names_a_base_that_is_missing(deployed):
    on(BASTION, "mkdir -p /tmp/empty")
    answer = smoke_in_image("", HIDE)
    assert failing(answer) >= {"cache is whole"} and "colpaligemma-tiny-base" in str(answer["checks"])


def test_smoke_sees_an_adapter_that_was_dropped(deployed):
    change = """
import colpali_engine.models as models
real = models.ColPali.from_pretrained.__func__
def dropped(cls, name, **more):
    model = real(cls, name, **more)
    if isinstance(model, tuple) is False and getattr(model, "_hf_peft_config_loaded", False):
        for key, value in model.named_parameters():
            if "lora_B" in key: value.data.zero_()
    return model
models.ColPali.from_pretrained = classmethod(dropped)
"""
    assert failing(smoke_in_image(change)) >= {
        "the adapter changes the output",
        "by name and by commit are the same model",
    }


def test_smoke_sees_the_network_used(deployed):
    change = "import socket, threading\nfrom tasks.remote.container import colpali\nreal = colpali.pages\ndef leak():\n    try: socket.getaddrinfo('huggingface.co', 443)\n    except OSError: pass\n    return real()\ncolpali.pages = leak"
    answer = smoke_in_image(change)
    assert failing(answer) == {"no outbound attempt"} and "huggingface.co" in str(answer["checks"])


def test_without_an_engine_on_the_bastion_goldens_must_be_accepted(deployed):
    on(BASTION, "service docker stop")
    good = json.loads(GOLDENS.read_text())
    GOLDENS.unlink()
    ids = container(GPU1), container(GPU2)
    try:
        stopped = pyinfra("deploy.py", *ONE)
        assert stopped.code == 1 and (container(GPU1), container(GPU2)) == ids
        assert f"tasks/lock.py --data accept_goldens_from={GPU1}" in stopped.host(GPU1)["why"]
        accepted = pyinfra("tasks/lock.py", "--data", f"accept_goldens_from={GPU1}")
        assert accepted.code == 0, accepted.said[-2000:]
        assert json.loads(GOLDENS.read_text())["classes"].keys() == good["classes"].keys()
        again = pyinfra("deploy.py", *ONE)
        assert again.code == 0, again.said[-3000:]
    finally:
        on(BASTION, "service docker start")
