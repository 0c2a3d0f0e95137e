"""Where no wire crosses: a bundle from the fleet's bastion, carried by hand to a far side, with Hub and bastion away."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.shared.blobs import missing_blobs
from tasks.shared.lock import Lock, parse_lock
from tests.e2e.conftest import BASTION, ROOT, hub, on, pyinfra
from tests.e2e.fleet import LOCK, committed, fleet, lock_version
from tests.lab import lab

FAR, HOST = "lab-gpu3", "lab-gpu4"
STICK, STORE = "/srv/stick", "/srv/far"
FAR_LOCK = ROOT / "group_data/locks/lab_far.json"
CONTENTS = ROOT / "reports/contents.json"
OURS = f"rm -rf {STICK} {STORE}; docker rm -f light-backend-1 2>/dev/null || true; rm -f /srv/light/*override*"


def far(*words: str):
    return pyinfra(*words, inventory="inventories/lab_far.py")


def carry() -> None:
    """The stick, out of one machine and into the other; its lock and goldens into the far side's git."""
    on(FAR, f"rm -rf {STICK}")
    out = subprocess.Popen(["docker", "cp", f"{BASTION}:{STICK}", "-"], stdout=subprocess.PIPE)
    subprocess.run(["docker", "cp", "-", f"{FAR}:/srv"], stdin=out.stdout, check=True)
    assert out.wait() == 0
    for name, path in (("lock.json", FAR_LOCK), ("goldens.json", FAR_LOCK.with_name("lab_far.goldens.json"))):
        path.write_text(on(FAR, f"cat {STICK}/{name}") + "\n")  # docker's answer comes without its last newline


@contextmanager
def nothing_connected():
    """Neither the Hub nor the bastion that wrote the stick is there."""
    for name in ("lab-hub", BASTION):
        lab.run("docker", "pause", name)
    try:
        yield
    finally:
        for name in ("lab-hub", BASTION):
            lab.run("docker", "unpause", name)


def written(*words: str) -> dict:
    run = fleet("tasks/bundle.py", *words)
    assert run.code == 0, run.said[-3000:]
    return json.loads(on(BASTION, f"cat {STICK}/bundle.json"))


def locked(path: Path = LOCK) -> Lock:
    return parse_lock(path.read_text())


def carried(about: dict) -> set[str]:
    return {part["blob"] for part in about["parts"]}


def serves() -> str:
    """What the far host's service embeds with, by its own word."""
    ask = 'curl -fsS -m 2 -d \'{"query": "invoice"}\' http://127.0.0.1:8100/embed'
    return json.loads(on(HOST, ask))["weights"]


def container() -> str:
    return on(HOST, "docker ps -q --no-trunc --filter label=com.docker.compose.project=light").strip()


@pytest.fixture(scope="module")
def stick():
    """Version 1 on the stick, at the connected bastion; a far side that has nothing. -> bundle.json"""
    lab.up(4)
    hub("reset", {})
    for name in (FAR, HOST):
        on(name, OURS)
    on(BASTION, f"rm -rf {STICK}; mkdir {STICK}")
    CONTENTS.unlink(missing_ok=True)
    lock_version("v1")
    about = written()
    committed("v1")
    yield about
    for name in (FAR, HOST):
        on(name, OURS)
    on(BASTION, f"rm -rf {STICK}")


@pytest.fixture(scope="module")
def arrived(stick):
    """Version 1 active on the far host, from the stick alone."""
    carry()
    with nothing_connected():
        run = far("deploy.py")
    assert run.code == 0, run.said[-3000:]
    return run


def test_dry_says_whether_it_fits_and_writes_nothing(stick):
    before = on(BASTION, f"find {STICK} -printf '%p %T@ %s\\n' | sort")
    run = fleet("--dry", "tasks/bundle.py")
    assert run.code == 0 and "fits on 64 GB: yes, " in run.said, run.said[-2000:]
    small = fleet("--dry", "tasks/bundle.py", "--data", "bundle_capacity=1MB")
    assert small.code == 1 and "fits on 1 MB: no, " in small.said
    assert on(BASTION, f"find {STICK} -printf '%p %T@ %s\\n' | sort") == before


def test_the_bundle_holds_the_lock_and_no_more_in_parts(stick):
    assert carried(stick) == set(locked().blobs()) and stick["without"] == {}
    assert any(part["name"].endswith(".001") for part in stick["parts"]), "a layer is larger than a part"
    assert max(part["size"] for part in stick["parts"]) <= 20_000_000
    assert on(BASTION, f"cd {STICK} && sha256sum -c --quiet SHA256SUMS && find . -type l").strip() == ""
    again = fleet("tasks/bundle.py")
    assert again.code == 0 and again.host(BASTION)["state"] == "unchanged"
    assert json.loads(on(BASTION, f"cat {STICK}/bundle.json")) == stick


def test_the_release_goes_active_with_hub_and_bastion_away(arrived):
    assert arrived.host(HOST)["state"] == "active" and arrived.host(HOST)["outbound_attempts"] == 0
    assert arrived.host(FAR)["moved_bytes"] == sum(locked(FAR_LOCK).blobs().values())
    assert on(HOST, f"cat {STORE}/current").strip() == locked(FAR_LOCK).id == locked().id
    assert serves() and on(FAR, f"ls -d {STORE}/venv-* 2>/dev/null || true").strip() == "", "no pip was needed"


def test_a_second_far_deploy_changes_nothing_and_needs_no_stick(arrived):
    on(FAR, f"mv {STICK} {STICK}.away")
    before = container()
    try:
        run = far("deploy.py")
    finally:
        on(FAR, f"mv {STICK}.away {STICK}")
    assert run.code == 0 and run.host(HOST)["state"] == "unchanged", run.said[-2000:]
    assert container() == before


def test_the_far_side_makes_no_lock_of_its_own(arrived):
    run = far("tasks/lock.py")
    assert run.code == 1 and "cp lock.json group_data/locks/lab_far.json" in run.said and "Traceback" not in run.said


INSTALL = f"""
rm -rf /tmp/control && mkdir /tmp/control && cd {STICK} && tar xf tool.tar.gz -C /tmp/control
python3 -m venv /tmp/control/venv
PIP_CONFIG_FILE=/dev/null /tmp/control/venv/bin/pip install --quiet --no-index --find-links {{wheels}} \\
    -r /tmp/control/hf-offline/requirements.txt 2>&1 || {{{{ echo failed; exit 0; }}}}
cd /tmp/control/hf-offline
/tmp/control/venv/bin/pyinfra --version
/tmp/control/venv/bin/python -c "from tasks.control import settings; print(settings.table())"
/tmp/control/venv/bin/python -c "import tasks.control.reporting.page, tasks.control.run"
"""


def test_the_tool_and_its_wheels_install_where_there_is_no_index(arrived):
    said = on(FAR, INSTALL.format(wheels="wheels"))
    assert "pyinfra: v3" in said and "| setting |" in said, said
    nothing = on(FAR, INSTALL.format(wheels="/var/empty"))  # the lab's own wheelhouse is not what did it
    assert "failed" in nothing and "pyinfra: v3" not in nothing


def test_version_2_brings_only_what_the_far_side_lacks(arrived):
    assert far("tasks/contents.py").code == 0
    have = json.loads(CONTENTS.read_text())
    assert have["blobs"] == locked(FAR_LOCK).blobs()
    old = serves()
    lock_version("v2")
    about = written("--data", "contents=reports/contents.json")
    committed("v2")
    differs = missing_blobs(locked().blobs(), have["blobs"])
    assert carried(about) == set(differs) and 0 < len(differs) < len(have["blobs"])
    assert set(about["without"]) == set(locked().blobs()) - set(differs)
    on(BASTION, f"cd {STICK} && sha256sum -c --quiet SHA256SUMS")
    carry()

    victim = f"{STICK}/{max(about['parts'], key=lambda part: part['size'])['name']}"
    flip = f"import os; f = open('{victim}', 'r+b'); b = f.read(1); f.seek(0); f.write(bytes([b[0] ^ 1]))"
    before, blobs = container(), on(FAR, f"ls {STORE}/blobs")
    on(FAR, f'python3 -c "{flip}"')
    with nothing_connected():
        refused = far("deploy.py")
        assert refused.code == 1 and refused.host(FAR)["state"] == "failed"
        assert f"{Path(victim).name} is damaged" in refused.host(FAR)["why"]
        assert refused.host(HOST)["state"] == "held" and container() == before and serves() == old
        assert Path(victim).name[:64] not in on(FAR, f"ls {STORE}/blobs").split()
        assert set(blobs.split()) <= set(on(FAR, f"ls {STORE}/blobs").split())
        on(FAR, f'python3 -c "{flip}"')
        run = far("deploy.py")
    assert run.code == 0, run.said[-3000:]
    assert run.host(HOST)["state"] == "active" and serves() != old
    assert run.host(FAR)["moved_bytes"] <= sum(differs.values())


def test_a_stick_of_another_release_changes_nothing(arrived):
    good, before = FAR_LOCK.read_text(), container()
    on(FAR, f"rm -f {STORE}/blobs/{min(locked(FAR_LOCK).blobs())}")  # the store must need something
    other = json.loads(on(FAR, f"cat {STICK}/bundle.json")) | {"release": "f" * 64}
    on(FAR, f"cp {STICK}/bundle.json /tmp/bundle.json; cat > {STICK}/bundle.json <<'EOS'\n{json.dumps(other)}\nEOS")
    run = far("deploy.py")
    on(FAR, f"cp /tmp/bundle.json {STICK}/bundle.json")
    assert run.code == 1 and run.host(FAR)["state"] == "unfit" and "holds release" in run.host(FAR)["why"]
    assert container() == before and FAR_LOCK.read_text() == good
