"""Before anything is believed: GPU hosts have no way out, and the bastion, by the same commands, has one."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import BASTION, GPU1, GPU2
from tests.lab import lab
from tests.lab.images import answers

OUTWARD = {
    "DNS": "getent hosts lab-hub",
    "TCP": "curl -sS --connect-timeout 3 -o /dev/null --resolve lab-hub:443:10.77.1.5 https://lab-hub/",
    "ping": "ping -c 1 -W 2 10.77.1.5",
}


@pytest.mark.parametrize("way", OUTWARD)
def test_the_bastion_reaches_out(machines, way):
    assert answers("docker", "exec", BASTION, "timeout", "10", "sh", "-c", OUTWARD[way])


@pytest.mark.parametrize("way", OUTWARD)
@pytest.mark.parametrize("name", [GPU1, GPU2])
def test_a_gpu_host_does_not(machines, name, way):
    assert not answers("docker", "exec", name, "timeout", "10", "sh", "-c", OUTWARD[way])


def test_up_again_changes_nothing_and_another_clone_is_refused(machines, monkeypatch):
    before = lab.run("docker", "inspect", "-f", "{{.Id}} {{.State.StartedAt}}", *lab.containers())
    lab.up()
    assert lab.run("docker", "inspect", "-f", "{{.Id}} {{.State.StartedAt}}", *lab.containers()) == before
    monkeypatch.setattr(lab, "owner", lambda: "somebody else")
    with pytest.raises(SystemExit, match="belongs to another clone"):
        lab.up()
