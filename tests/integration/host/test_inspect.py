"""The inspection of a host: the very text that travels, run as a process on real stores, and each record it may meet."""

from __future__ import annotations

import ast
import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest
from pydantic import TypeAdapter

from tasks.control import inspection
from tasks.remote.inspect import container, egress, stack
from tasks.remote.inspect import store as inspecting
from tasks.shared.facts import HostFacts
from tests.lab.images import BACKEND, answers

pytestmark = pytest.mark.integration
NO_RECORD = ["", "nonsense", '"words"', "1", "null", "[]"]
FACTS = TypeAdapter(HostFacts)
HERE = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}:/usr/sbin"


def said(*, python=(sys.executable, "-I", "-"), program=None, **question):
    """What the text prints as a process, fed on standard input as over ssh."""
    question = {"signers": "/nowhere/allowed_signers", **question}
    words = [*python, json.dumps({key: str(value) if key == "store" else value for key, value in question.items()})]
    done = subprocess.run(
        words, input=program or inspection.text(), capture_output=True, text=True, timeout=120, cwd="/"
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


def facts_of(store, **question) -> HostFacts:
    """The facts that the text prints, read back as the control machine reads them."""
    greeting, line, end = said(store=store, **question).split("\n")
    assert (greeting, end) == ("", "")
    return FACTS.validate_json(line, strict=True)


def inspect_store(path):
    return inspecting.store(str(path))


# ------------------------------------------------------------------------------------------------------------- contract


def test_the_facts_of_a_real_store_are_what_the_schema_says(host, document, lock, contents):
    admit(host, contents, document)
    host.incoming({"stranger": b"12345"})
    (host.store / "current").write_text(f"{lock.id}\n")
    state = host.store / "state" / lock.id
    (state / "smoke.json").write_text('{"ok": true, "outbound_attempts": 0, "cosine": {"mean": 1, "p1": 0.9}}')
    (state / "goldens.json").write_text("{}")
    (state / "baked.json").write_text('{"config": "sha256:x", "manifest": "sha256:y"}')
    facts = facts_of(host.store)
    assert facts.python == list(sys.version_info[:3]) and facts.user == os.geteuid()
    assert abs(facts.clock - time.time()) < 60
    programs = (facts.rsync, facts.rrsync, facts.skopeo, facts.ssh_keygen)
    assert programs == tuple(shutil.which(name) is not None for name in ("rsync", "rrsync", "skopeo", "ssh-keygen"))
    assert facts.store_filesystem.path == str(host.store) and facts.store_filesystem.exists
    assert facts.store.blobs == {name: len(data) for name, data in contents.items()}
    assert facts.store.incoming == {"stranger": 5}
    assert (facts.store.releases, facts.store.current, facts.store.previous) == ([lock.id], lock.id, None)
    assert facts.store.damaged == {} and host.tool.name not in facts.store.tools
    kept = facts.store.states[lock.id]
    assert kept.verified and kept.smoke and (kept.smoke.ok, kept.smoke.cosine, kept.smoke.versions) == (True, 1, None)
    assert kept.baked == {"config": "sha256:x", "manifest": "sha256:y"} and not kept.has_candidate
    assert kept.goldens == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert json.loads(facts.store.locks[lock.id] or "")["models"] == document["models"]
    assert (facts.signers, facts.bundle, facts.stack, facts.container, facts.egress) == (None, None, None, None, [])


def test_a_host_without_a_store_is_seen_and_nothing_is_made_there(tmp_path):
    path = tmp_path / "deep/store"
    facts = facts_of(path)
    assert not facts.store_filesystem.exists and facts.store_filesystem.free_bytes > 0
    assert (facts.store.blobs, facts.store.releases, facts.store.states, facts.store.devices) == ({}, [], {}, [])
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_no_text_hides_nothing(host):
    """The push key may write any name into incoming/."""
    with open(os.fsencode(host.store) + b"/incoming/\xff\xfe", "wb") as file:
        file.write(b"123")
    assert facts_of(host.store).store.incoming == {"??": 3}


def test_a_stack_without_a_file_is_empty_and_one_with_files_has_its_names(host, tmp_path):
    folder = tmp_path / "stack"
    folder.mkdir()
    question = {"stack": str(folder), "service": "search"}
    none = facts_of(host.store, **question).stack
    assert none and (none.files, none.override, none.overrides, none.services, none.networks) == ([], None, {}, [], {})
    (folder / "docker-compose.yml").write_text("nonsense")
    (folder / "compose.yml").write_text("nonsense")
    (folder / "docker-compose.override.yml").write_text("theirs")
    found = facts_of(host.store, project="p", **question).stack
    assert found and (found.files, found.override) == (["compose.yml", "docker-compose.yml"], "compose.override.yml")
    assert (found.overrides, found.project) == ({"docker-compose.override.yml": "theirs"}, "p")
    assert found.services is None, "Compose refuses it, or is not here"


def test_a_bundles_directory_is_seen_with_its_parts_and_the_release_that_it_names(host, tmp_path):
    drive = tmp_path / "drive"
    gone = facts_of(host.store, bundle=str(drive)).bundle
    assert gone and (gone.filesystem.exists, gone.parts, gone.release) == (False, {}, None)
    (drive / "parts").mkdir(parents=True)
    (drive / "parts/one").write_bytes(b"1234")
    (drive / "bundle.json").write_text('{"release": "' + "a" * 64 + '"}')
    found = facts_of(host.store, bundle=str(drive)).bundle
    assert found and (found.filesystem.exists, found.parts, found.release) == (True, {"one": 4}, "a" * 64)


@pytest.mark.docker
@pytest.mark.skipif(not answers("sh", "-c", f"docker image inspect {BACKEND}"), reason=f"needs {BACKEND}")
def test_a_service_that_runs_is_seen_with_its_process_and_its_mounts(host, tmp_path):
    """`detached` is about the mount: the release's directory is replaced under the running container."""
    folder, root = tmp_path / "stack", host.store / "releases" / ("a" * 64)
    folder.mkdir()
    root.mkdir(parents=True)
    (folder / "compose.yaml").write_text("nonsense")
    name = f"inspected-{os.getpid()}"
    labels = {
        "com.docker.compose.project": name,
        "com.docker.compose.service": "search",
        "hf-offline.release": "a" * 64,
    }
    words = [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
    words += [
        "--network",
        "none",
        "--env",
        "HF_HOME=/models/hf",
        "-v",
        f"{root}:/models/hf:ro",
        "--entrypoint",
        "sleep",
    ]
    question = {"stack": str(folder), "service": "search", "project": name}
    assert facts_of(host.store, **question).container is None
    subprocess.run(["docker", "run", "-d", "--name", name, *words, BACKEND, "300"], check=True, capture_output=True)
    try:
        facts = facts_of(host.store, **question)
        found = facts.container
        assert found and (found.state, found.health, found.restarts) == ("running", None, 0)
        assert found.release == "a" * 64 and found.mounts == {"/models/hf": str(root)} and found.detached == []
        assert (found.environment or {}).get("HF_HOME") == "/models/hf"
        assert facts.docker and facts.docker.images.get(BACKEND) == found.image
        root.rename(root.with_name("aside"))
        again = facts_of(host.store, **question).container
        assert again and again.detached == [f"has mounted what is no longer {root}"]
        subprocess.run(["docker", "kill", name], check=True, capture_output=True)
        dead = facts_of(host.store, **question).container
        assert dead and (dead.state, dead.environment, dead.detached) == ("exited", None, [])
    finally:
        subprocess.run(["docker", "rm", "-f", name], check=True, capture_output=True)


def test_without_a_docker_client_there_is_no_engine(host, tmp_path):
    python = ("env", f"PATH={tmp_path}", sys.executable, "-I", "-")
    line = said(store=host.store, python=python).strip()
    facts = FACTS.validate_json(line, strict=True)
    assert (facts.docker, facts.gpus, facts.rsync, facts.ssh_keygen) == (None, None, False, False)


def test_a_store_that_a_switch_changes_meanwhile_is_read_again(host, tmp_path, monkeypatch):
    """What a switch changed while it was read is half old and half new."""
    from tasks.remote.inspect import program
    from tasks.shared.facts import Question

    reads, real = [], program.read_host

    def read_host(question):
        facts = real(question)
        if not reads:
            (host.store / "current").write_text("b\n")
        reads.append(facts.store.current)
        return facts

    monkeypatch.setattr(program, "read_host", read_host)
    facts = program.inspect(Question(store=str(host.store), signers=str(tmp_path / "none")))
    assert reads == [None, "b"] and facts.store.current == "b"


# ------------------------------------------------------------------------------------------------------------- the text


def test_the_text_carries_what_the_inspection_imports_and_nothing_else():
    names = set(inspection.modules(inspection.PROGRAM))
    assert {"tasks", "tasks.remote.inspect.program", "tasks.remote.common.files", "tasks.shared.facts"} <= names
    assert not any(name.startswith(("tasks.control", "tasks.remote.host", "tasks.remote.bastion")) for name in names)
    assert names >= set(imports_at_run_time())


def imports_at_run_time():
    """The modules of ours that are loaded where the whole package is there."""
    script = f"import sys, {inspection.PROGRAM}; print([name for name in sys.modules if name.split('.')[0] == 'tasks'])"
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=root)
    return ast.literal_eval(done.stdout)


def test_the_text_fits_in_one_argument_and_in_a_here_document():
    """ssh hands a command to the shell as one argument, of at most 128 KiB; quotes grow when pyinfra quotes them."""
    assert inspection.text().isascii() and len(inspection.text().replace("'", "'\"'\"'")) < 100_000
    assert inspection.DELIMITER not in inspection.text().splitlines()


def test_a_shell_runs_the_text_as_pyinfra_hands_it_over(host):
    from tasks.control.operations.inspection_fact import Inspection

    command = Inspection().command(json.dumps({"store": str(host.store), "signers": "/nowhere"})).get_raw_value()
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert FACTS.validate_json(done.stdout.strip(), strict=True).store.releases == []
    bare = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, text=True, check=True, env={"PATH": "/nowhere"}
    )
    assert json.loads(bare.stdout) == {"python": None}
    assert Inspection().process(["hello", *done.stdout.splitlines(), "bye"])["store"]["releases"] == []


OLD = ("python2.7", "python2", "python3.4", "python3.5", "python3.6", "python3.7", "python3.8")


def test_an_old_python_says_its_version_and_stops():
    """By this Python under another version, and by each old one that this machine has."""
    head = "import sys\nsys.version_info = (3, 8, 18, 'final', 0)\n"
    assert json.loads(said(store="/nowhere", program=head + inspection.text())) == {"python": [3, 8, 18]}
    ast.parse(inspection.text(), feature_version=(3, 4))
    for name in OLD:
        with contextlib.suppress(OSError):
            asked = subprocess.run([name, "-c", "import sys; print(list(sys.version_info[:3]))"], capture_output=True)
            if asked.returncode == 0:
                found = said(store="/nowhere", python=(name, "-"))
                assert json.loads(found) == {"python": json.loads(asked.stdout)}, name


# --------------------------------------------------------------------------------------------------------------- egress

# In a network of its own: a resolver that never answers (a silent socket on its port), and a listener whose backlog is
# full, so that the kernel drops what comes. Prints {name: [seconds, whether the right targets answered]}.
DROPPED = """
import json, socket, subprocess, sys, time

resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
resolver.bind(("127.0.0.1", 53))
full = socket.create_server(("127.0.0.1", 0), backlog=0)
dropped = "127.0.0.1:%d" % full.getsockname()[1]
kept = []
for _ in range(4):
    kept.append(socket.socket())
    kept[-1].setblocking(False)
    kept[-1].connect_ex(full.getsockname())
answering = socket.create_server(("127.0.0.1", 0))
answers = "127.0.0.1:%d" % answering.getsockname()[1]
time.sleep(0.2)
text, question = sys.stdin.read(), json.loads(sys.argv[1])
names = ["name%d.example:443" % number for number in range(8)]
found = {}
for name, egress in {
    "none": [], "one": [dropped], "many": [dropped] * 8, "names": names, "all": [answers, dropped, *names],
}.items():
    started = time.monotonic()
    words = [sys.executable, "-I", "-", json.dumps({**question, "egress": egress})]
    done = subprocess.run(words, input=text, stdout=subprocess.PIPE, text=True, check=True)
    found[name] = [time.monotonic() - started, json.loads(done.stdout)["egress"] == ([answers] if name == "all" else [])]
print(json.dumps(found))
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare", path=HERE), reason="needs root and unshare")
def test_dropped_targets_and_a_silent_resolver_cost_as_much_as_one_target(tmp_path):
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    (tmp_path / "dropped.py").write_text(DROPPED)
    question = json.dumps({"store": str(tmp_path), "signers": "/nowhere"})
    script = f'ip link set lo up && mount --bind {tmp_path}/resolv.conf /etc/resolv.conf && exec "$@"'
    words = ["unshare", "--net", "--mount", "sh", "-c", script, "-", sys.executable, tmp_path / "dropped.py", question]
    if subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("this machine gives no network namespace")
    done = subprocess.run(
        words, input=inspection.text(), capture_output=True, text=True, timeout=120, env={**os.environ, "PATH": HERE}
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(right for _, right in found.values()), "what answers is seen, and nothing else"
    cost = {name: seconds for name, (seconds, _) in found.items()}
    assert cost["one"] >= egress.DEADLINE, "the control: a dropped target is waited for"
    for name in ("many", "names", "all"):  # one after the other they would cost eight or ten times as much
        assert cost[name] < 3 * cost["one"], cost


def test_a_target_that_is_none_answers_nothing(host):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        target = f"127.0.0.1:{listening.getsockname()[1]}"
        facts = facts_of(host.store, egress=["nonsense", "127.0.0.1:" + 30 * "9", "127.0.0.1:", target])
    assert facts.egress == [target]


# -------------------------------------------------------------------------------------------------------------- records


def admit(host, contents, document):
    host.incoming(contents)
    host.run("store", "admit", document=document)


@pytest.mark.parametrize("text", NO_RECORD)
@pytest.mark.parametrize("name", ["pending", "frozen"])
def test_a_record_that_counts_by_being_there_does_so_whatever_is_in_it(store, name, text):
    assert getattr(inspect_store(store), name) is None
    (store / "state" / name).write_text(text)
    assert f"state/{name}" in getattr(inspect_store(store), name)["why"]
    (store / "state" / name).write_text('{"why": "it is"}')
    assert getattr(inspect_store(store), name) == {"why": "it is"}


@pytest.mark.parametrize("text", NO_RECORD)
def test_what_is_no_record_is_none(store, text):
    for name in ("verified-at", "smoke.json", "baked.json", "signed.json"):
        (store / "state/one" / name).write_text(text)
    (store / "journal.jsonl").write_text(f'{{"step": "confirm", "time": "then"}}\n{text}\n')
    facts = inspect_store(store)
    assert {getattr(facts.states["one"], key) for key in ("verified", "smoke", "baked", "signatures")} == {None}
    assert facts.confirmed_at == "then"


def test_a_directory_that_cannot_be_read_hides_only_what_is_in_it(store, monkeypatch):
    (store / "releases" / ("a" * 64)).mkdir(parents=True)
    (store / "releases" / ("x" * 64)).mkdir()  # as long as an id, and none
    facts = inspect_store(store)
    assert facts.releases == ["a" * 64] and set(facts.states) == {"one"}, "the control"

    def fail(path):
        raise OSError(errno.EIO, "a broken disk", path)

    monkeypatch.setattr(inspecting.os, "listdir", fail)
    facts = inspect_store(store)
    assert facts.releases is None and facts.states == {}


def test_what_is_no_directory_holds_no_releases_that_can_be_read(tmp_path):
    assert inspecting.releases(str(tmp_path / "missing")) == [] == inspecting.folders(str(tmp_path / "missing"))
    (tmp_path / "file").write_text("")
    assert inspecting.releases(str(tmp_path / "file")) is None is inspecting.folders(str(tmp_path / "file"))


def test_a_tool_that_was_cut_short_is_brought_again(bastion):
    folder, name, whole = str(bastion.tool.parent), bastion.tool.name, bastion.tool.read_bytes()
    assert name in inspecting.tools(folder)
    for broken in (whole[: len(whole) // 2], b"", whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:]):
        bastion.tool.write_bytes(broken)
        assert name not in inspecting.tools(folder)
    type(bastion)(bastion.root)  # as it is brought to a host
    assert name in inspecting.tools(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("verified", '{"at": "then", "epoch": "x"}'),
        ("verified", '{"at": "then", "epoch": NaN}'),
        ("verified", '{"at": 5, "epoch": 1}'),
        ("smoke", '{"ok": true, "outbound_attempts": 0, "cosine": {"mean": "x"}}'),
        ("smoke", '{"ok": true, "outbound_attempts": 0, "cosine": 5}'),
        ("smoke", '{"ok": true, "outbound_attempts": 0, "latency_ms": {"page": NaN}}'),
        ("smoke", '{"ok": true}'),
        ("smoke", '{"ok": "yes", "outbound_attempts": 0}'),
        ("smoke", '{"ok": true, "outbound_attempts": "none"}'),
        ("smoke", '{"ok": true, "outbound_attempts": 0, "versions": {"torch": 2}}'),
        ("smoke", '{"ok": true, "outbound_attempts": 0, "latency_ms": {"page": 1' + "0" * 400 + "}}"),
    ],
)
def test_a_record_whose_values_are_none_of_ours_is_none(store, name, text):
    for file, good in (
        ("verified-at", '{"at": "then", "epoch": 1}'),
        (
            "smoke.json",
            '{"ok": true, "outbound_attempts": 0, "cosine": null, "latency_ms": {"page": 1.5, "query": null}}',
        ),
    ):
        (store / "state/one" / file).write_text(good)
    assert getattr(inspect_store(store).states["one"], name) is not None
    (store / "state/one" / {"verified": "verified-at", "smoke": "smoke.json"}[name]).write_text(text)
    assert getattr(inspect_store(store).states["one"], name) is None


INSPECTED = {
    "NetworkSettings": {"Networks": {"stack_default": {"Aliases": ["search"]}, "front": {"Aliases": ["search", "s"]}}},
    "State": {"Pid": os.getpid()},
    "Mounts": [],
}


def test_a_container_that_was_cut_off_or_mounts_what_is_gone_is_told(store, monkeypatch):
    root = str(store / "releases/one")
    whole = {**INSPECTED, "Mounts": [{"Source": root, "Destination": "/models/hf"}]}
    mounted = "1 2 8:1 {} /models/hf ro - ext4 /dev/x ro\n3 2 0:5 / /proc rw - proc proc rw\n"
    monkeypatch.setattr(container, "read", lambda path: mounted.format("/models/releases/one"))
    front = {"name": "front", "external": True}
    config = {"services": {"search": {"networks": {"default": None, "front": {"aliases": ["s"]}}}, "bare": {}}}
    config |= {"networks": {"default": {"name": "stack_default"}, "front": front}}
    networks = stack.networks(config, "search")
    assert networks == {"stack_default": ["search"], "front": ["s", "search"]} and stack.networks(config, "bare") == {}
    assert container.detached(whole, str(store), networks) == []
    cut = {**whole, "NetworkSettings": {"Networks": {"front": {"Aliases": None}, "other": {}}}}
    said = ["is not on its network stack_default", "is not called s, search on its network front"]
    assert container.detached(cut, str(store), networks) == said
    assert container.detached(cut, str(store), {}) == [], "one with the host's network, or another container's"
    for gone in ("/models/releases/one//deleted", "/models/releases/.one.5.aside"):
        monkeypatch.setattr(container, "read", lambda path, gone=gone: mounted.format(gone))
        assert container.detached(whole, str(store), networks) == [f"has mounted what is no longer {root}"]
        strangers = {**whole, "Mounts": [{"Source": "/etc", "Destination": "/models/hf"}]}
        assert container.detached(strangers, str(store), networks) == [], "what the operator mounts is theirs"
    monkeypatch.setattr(container, "read", lambda path: None)
    assert container.detached(whole, str(store), networks) == [], "it has ended: that is told as that"


def test_the_inspection_names_what_is_gone_from_a_release_though_its_blobs_are_there(host, document, lock, contents):
    admit(host, contents, document)
    assert inspect_store(host.store).damaged == {}
    model = lock.models[1]
    top = host.store / "releases" / lock.id / "hub" / model.folder
    (top / "blobs" / model.files["model.safetensors"].etag).unlink()
    (top / "refs/main").chmod(0o644)
    (top / "refs/main").write_text("b")
    gone = [f"{model.repo}/refs/main", f"{model.repo}/snapshots/{model.commit}/model.safetensors"]
    assert inspect_store(host.store).damaged == {lock.id: gone}
    assert set(lock.blobs()) <= set(inspect_store(host.store).blobs)


def test_the_inspection_names_what_is_another_file_than_the_stores_blob(host, document, lock, contents):
    admit(host, contents, document)
    model = lock.models[1]
    file = model.files["model.safetensors"]
    blob = host.store / "releases" / lock.id / "hub" / model.folder / "blobs" / file.etag
    blob.parent.chmod(0o755)
    blob.unlink()
    blob.write_bytes(b"x" * file.size)
    assert inspect_store(host.store).damaged == {lock.id: [f"{model.repo}/snapshots/{model.commit}/model.safetensors"]}


@pytest.mark.parametrize("note", [*NO_RECORD, None, '{"id": "x1"}'])
def test_a_lease_is_what_a_living_process_holds_whatever_its_note_says(store, note):
    if note is not None:
        (store / "lease.json").write_text(note)
    assert inspecting.lease(str(store)) is None
    with open(store / ".lease.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert inspecting.lease(str(store)) == ({"id": "x1"} if note and "x1" in note else {})


def test_a_candidate_is_seen_while_it_is_there(store):
    assert not inspect_store(store).states["one"].has_candidate
    (store / "state/one/candidate").mkdir()
    assert inspect_store(store).states["one"].has_candidate
