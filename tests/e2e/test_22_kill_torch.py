"""Two rounds of the kill test on the service with torch: what the light one shows holds for a real backend."""

from __future__ import annotations

from tests.e2e import kill
from tests.e2e.conftest import MIXED, ONE, commits, hub, pyinfra


def torch(version: str) -> None:
    hub("refs", {"docai/colpali-tiny": {"main": commits()[version]}})
    for words in (
        ("tasks/lock.py", "--data", "update=true"),
        ("deploy.py", *MIXED, *ONE),
    ):
        run = pyinfra(*words)
        assert run.code == 0, run.said[-3000:]


def test_an_activation_of_a_real_backend_ends_old_or_new(machines, capsys):
    hub("reset", {})
    for version in ("v1", "v2"):
        if not kill.TORCH.other():
            torch(version)
    with capsys.disabled():
        tally = kill.rounds({kill.TORCH: 2})
    assert tally.total() == 2
