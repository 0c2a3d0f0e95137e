"""Two rounds of the kill test on the service with torch: what the light one shows holds for a real backend."""

from __future__ import annotations

from tests.e2e import kill
from tests.e2e.conftest import BASTION, GPU1, MIXED, commits, hub, pyinfra


def torch(version: str) -> None:
    hub("refs", {"docai/colpali-tiny": {"main": commits()[version]}})
    for words in (
        ("tasks/lock.py", "--data", "update=true"),
        ("deploy.py", *MIXED, "--limit", BASTION, "--limit", GPU1),
    ):
        run = pyinfra(*words)
        assert run.code == 0, run.said[-3000:]


def test_an_activation_of_a_real_backend_ends_old_or_new(machines, capsys):
    hub("reset", {})
    torch("v1")  # it may serve a release of its own volume now: the rounds read back what lies in the store
    if not kill.TORCH.other():
        torch("v2")
    with capsys.disabled():
        tally = kill.rounds({kill.TORCH: 2})
    assert tally.total() == 2
