"""Bytes are hashed after their sender is gone: a process of the push user that is left is waited for, and then refused."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading

import pytest

from tasks.remote.host import admit
from tasks.shared.errors import Refused

pytestmark = pytest.mark.integration
PUSHER, UID = "hfpushgone", "64123"  # a number that no process in a container of this machine has


@pytest.fixture
def pusher():
    """pusher(script, file): a process of the push user that runs a shell script, with the file open on its output."""
    words = ["useradd", "--no-create-home", "--uid", UID, "-s", "/bin/sh", PUSHER]
    subprocess.run(words, check=True)
    running = []

    def start(script, file):
        with open(file, "r+b") as output:
            running.append(
                subprocess.Popen(
                    ["sh", "-c", script], user=PUSHER, group=PUSHER, cwd="/", stdout=output, start_new_session=True
                )
            )
        # Waited for as sshd does it: a process that has ended and that nobody has waited for still counts as one.
        threading.Thread(target=running[-1].wait, daemon=True).start()
        return running[-1]

    yield start
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(["userdel", "--force", PUSHER], check=True)


def names(host, folder):
    return {path.name for path in (host.store / folder).iterdir()}


def test_what_a_pusher_writes_after_the_move_is_hashed_too(host, document, lock, contents, pusher):
    """It has the file open. Hashed before it ends, the blob would be proven and another."""
    host.incoming(contents)
    victim = next(sha256 for sha256, data in contents.items() if data == b"weights")
    pusher("sleep 1.5; printf W", host.store / "incoming" / victim)
    answer = host.run("store", "admit", "--user", PUSHER, document=document, ok=False)
    assert "docai/colpaligemma-tiny-base: model.safetensors: 7 bytes" in answer["error"]["found"]
    assert victim not in names(host, "blobs") and not (host.store / "releases" / lock.id).exists()
    host.incoming({victim: contents[victim]})
    assert host.run("store", "admit", "--user", PUSHER, document=document)["built"], "the control: it has ended"


def test_a_pusher_that_does_not_end_lets_nothing_in_and_its_files_are_out_of_its_reach(
    host, lock, contents, pusher, monkeypatch
):
    """The check stands after the move: one that starts before it could open a file in between."""
    monkeypatch.setattr(admit, "GONE", 0.5)
    host.incoming(contents)
    process = pusher("exec sleep 60", host.store / "incoming" / min(contents))
    with pytest.raises(Refused, match=rf"{PUSHER}: still has processes .*found {process.pid}"):
        admit.admit(str(host.store), lock, PUSHER, "/none")
    assert names(host, "taken") == set(contents) and not names(host, "incoming") and not names(host, "blobs")
    process.kill()
    process.wait()
    assert admit.ready(str(host.store), lock, PUSHER)["partial"] == {name: len(data) for name, data in contents.items()}
    assert admit.admit(str(host.store), lock, PUSHER, "/none")["built"], "the control, with no byte sent again"


def test_nothing_is_swept_while_a_pusher_still_writes(host, lock, contents, pusher, monkeypatch):
    monkeypatch.setattr(admit, "GONE", 0.5)
    other = host.store / "incoming" / ("0" * 64)
    other.write_bytes(b"of another release")
    process = pusher("exec sleep 60", other)
    with pytest.raises(Refused, match="still has processes"):
        admit.ready(str(host.store), lock, PUSHER)
    assert other.exists()
    process.kill()
    process.wait()
    assert admit.ready(str(host.store), lock, PUSHER)["swept"] == [other.name], "the control"
