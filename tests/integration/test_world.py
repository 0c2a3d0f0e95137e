"""Facts of the world that the design stands on: an upgrade that changes one turns a test red here, not an operator."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.integration.conftest import BASE, BIG
from tests.lab import hub as stand_in

pytestmark = pytest.mark.integration


def client(hub, home, script, **environment):
    """Run a few lines with the unmodified huggingface_hub client; its output, or its last line of error."""
    base = {"HF_HOME": str(home), "HF_ENDPOINT": hub["endpoint"], "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **base}, timeout=120
    )
    return done.stdout.strip() if done.returncode == 0 else "failed: " + done.stderr.strip().splitlines()[-1]


def main_of(hub):
    return json.loads((hub["root"] / BASE / "refs.json").read_text())["main"]


SNAPSHOT = "from huggingface_hub import snapshot_download as s; print(s({repo!r}, revision={revision!r}, token=False))"


def test_the_client_checks_downloads_by_size_alone(hub, tmp_path):
    stand_in.FAULTS["corrupt"] = "model.safetensors"
    path = client(hub, tmp_path / "home", SNAPSHOT.format(repo=BASE, revision="main"), HF_HUB_DISABLE_XET="1")
    with open(f"{path}/model.safetensors", "rb") as file:
        assert len(data := file.read()) == len(BIG) and data != BIG


def test_a_fetch_by_commit_writes_no_ref_and_by_branch_one_without_a_newline(hub, tmp_path):
    sha, folder = main_of(hub), "hub/models--" + BASE.replace("/", "--")
    client(hub, tmp_path / "a", SNAPSHOT.format(repo=BASE, revision=sha), HF_HUB_DISABLE_XET="1")
    assert not (tmp_path / "a" / folder / "refs").exists()
    client(hub, tmp_path / "b", SNAPSHOT.format(repo=BASE, revision="main"), HF_HUB_DISABLE_XET="1")
    assert (tmp_path / "b" / folder / "refs/main").read_bytes() == sha.encode()


LOOKUP = "from huggingface_hub import hf_hub_download as h; print(h({repo!r}, 'config.json', local_files_only=True))"


def test_a_newline_in_a_ref_hides_the_repository_offline(hub, tmp_path):
    home = tmp_path / "home"
    client(hub, home, SNAPSHOT.format(repo=BASE, revision="main"), HF_HUB_DISABLE_XET="1")
    assert client(hub, home, LOOKUP.format(repo=BASE), HF_HUB_OFFLINE="1").endswith("config.json")
    ref = home / "hub" / ("models--" + BASE.replace("/", "--")) / "refs/main"
    ref.write_text(ref.read_text() + "\n")
    assert client(hub, home, LOOKUP.format(repo=BASE), HF_HUB_OFFLINE="1").startswith("failed")


@pytest.mark.parametrize("disabled", ["0", "1"])
def test_xet_keeps_payloads_outside_the_repository_unless_told_otherwise(hub, tmp_path, cas, disabled):
    stand_in.FAULTS["xet"] = cas
    home = tmp_path / "home"
    client(hub, home, SNAPSHOT.format(repo=BASE, revision="main"), HF_HUB_DISABLE_SHARED_BLOBS=disabled)
    own = home / "hub" / ("models--" + BASE.replace("/", "--")) / "blobs"
    outside = [path for path in own.iterdir() if path.is_symlink()]
    assert bool(outside) is (disabled == "0")
    copied = tmp_path / "copied"
    subprocess.run(["rsync", "-a", f"{own.parent}/", f"{copied}/"], check=True)
    dangling = [path for path in (copied / "blobs").iterdir() if not path.exists()]
    assert len(dangling) == len(outside)
