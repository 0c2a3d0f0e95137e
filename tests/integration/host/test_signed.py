"""Signatures with the real ssh-keygen: what is not signed by an allowed key, byte for byte, is neither kept, admitted nor activated."""

from __future__ import annotations

import copy
import json
import os
import subprocess

import pytest

from tasks.control.git import files as git_files
from tasks.control.git import signatures as signed_files
from tasks.control.git.lockfile import lock_path
from tasks.control.settings_layers import read_settings
from tasks.remote.host.records import Records
from tasks.remote.inspect import machine, release
from tasks.shared.errors import Refused, describe
from tasks.shared.lock import lock_text, parse_lock
from tasks.shared.signatures import writable_by_others
from tests.unit.conftest import SETTINGS

pytestmark = pytest.mark.integration
NAMES = {"lock": "group_data/locks/lab.json", "goldens": "group_data/locks/lab.goldens.json"}


def keygen(*words, **more):
    return subprocess.run(["ssh-keygen", *map(str, words)], check=True, capture_output=True, timeout=60, **more)


@pytest.fixture
def keys(tmp_path):
    """A folder with the keys of alice, who may sign, and of eve, who may not."""
    for name in ("alice", "eve"):
        keygen("-q", "-t", "ed25519", "-N", "", "-C", name, "-f", tmp_path / name)
    return tmp_path


def listed(keys, name="alice", options=""):
    """A line of allowed_signers."""
    return f"{name}@example.org {options}{' '.join((keys / f'{name}.pub').read_text().split()[:2])}\n"


@pytest.fixture
def signers(keys):
    """The machine's list, as its administrator writes it: root's, in a directory of root's."""
    folder = keys / "etc"
    folder.mkdir(mode=0o755)
    path = folder / "allowed_signers"
    path.write_text(listed(keys))
    path.chmod(0o644)
    return path


def signature(keys, text, name="alice", namespace="hf-offline"):
    return keygen("-Y", "sign", "-n", namespace, "-f", keys / name, input=text.encode()).stdout.decode()


def goldens_of(release_id, query="good"):
    entry = {"queries": [query], "vectors": {"query0": {"shape": [1, 1], "f16": "ADw="}}}
    return json.dumps({"release": release_id, "classes": {"cpu/float32": entry}}, indent=1) + "\n"


def entry(keys, what, text, **more):
    return {"path": NAMES[what], "text": text, "signature": signature(keys, text, **more)}


def sent(keys, lock, **more):
    """What the controller sends for a release that is signed as it should be."""
    texts = {"lock": lock_text(lock.document), "goldens": goldens_of(lock.id)}
    return {what: entry(keys, what, text, **more) for what, text in texts.items()}


def other(lock):
    document = copy.deepcopy(dict(lock.document))
    document["models"][0]["commit"] = "c" * 40
    return parse_lock(json.dumps(document))


def unsigned(keys, lock, what):
    good = sent(keys, lock)
    return {**good, what: {**good[what], "signature": None}}


def wrong_key(keys, lock, what):
    good = sent(keys, lock)
    return {**good, what: sent(keys, lock, name="eve")[what]}


def wrong_namespace(keys, lock, what):
    good = sent(keys, lock)
    return {**good, what: sent(keys, lock, namespace="git")[what]}


def tampered(keys, lock, what):
    good = sent(keys, lock)
    asked = lock_text({**lock.document, "asked": {"docai/colpali-tiny": "evil"}})  # another text, the same release
    text = {"lock": asked, "goldens": goldens_of(lock.id, "evil")}[what]
    assert text != good[what]["text"]
    return {**good, what: {**good[what], "text": text}}


def signature_of_another(keys, lock, what):
    good = sent(keys, lock)
    return {**good, what: {**good[what], "signature": sent(keys, other(lock))[what]["signature"]}}


def another_release(keys, lock, what):
    """A good signature of a whole text, of another release: a replay."""
    return {**sent(keys, lock), what: sent(keys, other(lock))[what]}


def no_signature_at_all(keys, lock, what):
    return {
        **sent(keys, lock),
        what: {"path": NAMES[what], "text": sent(keys, lock)[what]["text"], "signature": "junk"},
    }


FAULTS = {
    unsigned: "asks for a signature of",
    wrong_key: "does not allow the key that signed",
    wrong_namespace: "has a signature that does not fit",
    tampered: "has a signature that does not fit",
    signature_of_another: "has a signature that does not fit",
    another_release: "is another release's",
    no_signature_at_all: "has a signature that does not fit",
}


def keep(host, lock, signers, what, ok=True):
    return host.run("signed", "keep", "--release", lock.id, "--signers", signers, document=what, ok=ok)


def check(host, lock, signers, ok=True):
    return host.run("signed", "check", "--release", lock.id, "--signers", signers, ok=ok)


def admit(host, lock, signers, ok=True):
    return host.run("store", "admit", "--signers", signers, document=dict(lock.document), ok=ok)


def passed(host, lock, goldens=None):
    """A smoke test passes with what was kept, and with these goldens."""
    texts = {"goldens.json": goldens or goldens_of(lock.id)}
    host.run("engine", "candidate", "--release", lock.id, document=texts)
    Records(str(host.store)).pass_candidate(lock.id)


def activate(host, lock, signers):
    """Always a refusal here: there is no stack. By what it is refused tells how far the switch came."""
    words = ("--stack", host.root, "--override", "o.yml", "--project", "p", "--service", "s", "--within", "1")
    release_id = ("--release", lock.id, "--signers", signers)
    return host.run("switch", "activate", *words, *release_id, document={}, ok=False)["error"]


def plant(host, lock, what):
    """As if it had been kept: by an older program, a backup, another hand."""
    folder = host.store / "state" / lock.id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "goldens.json").write_text(what["goldens"]["text"])
    (folder / "signed.json").write_text(json.dumps(what))


def untouched(host):
    """Nothing has entered blobs/, nothing has left incoming/, and no switch has begun."""
    assert list((host.store / "blobs").iterdir()) == [] and list((host.store / "releases").iterdir()) == []
    assert len(list((host.store / "incoming").iterdir())) == 8
    assert not (host.store / "journal.jsonl").exists()


def said(error, signers):
    """A refusal names its file, what was expected and found, and a command."""
    assert error["where"] and error["expected"] and error["found"] and error["next"]
    return f"{error['where']} {error['what']}"


def test_what_an_allowed_key_signed_is_kept_admitted_and_may_be_activated(host, lock, contents, keys, signers):
    host.incoming(contents)
    assert keep(host, lock, signers, sent(keys, lock))["kept"]
    assert admit(host, lock, signers)["built"]
    assert "has none on this machine" in activate(host, lock, signers)["what"], "no smoke test has passed with them yet"
    passed(host, lock)
    assert check(host, lock, signers) == {"ok": True, "required": True, "signer": "alice@example.org"}
    assert "an override whose smoke test passed" in activate(host, lock, signers)["expected"], "past the signatures"


@pytest.mark.parametrize("what", NAMES)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_what_is_not_signed_as_it_should_be_is_refused_by_name(host, lock, contents, keys, signers, fault, what):
    host.incoming(contents)
    bad = fault(keys, lock, what)
    no = keep(host, lock, signers, bad, ok=False)["error"]
    assert FAULTS[fault] in said(no, signers) and NAMES[what] in no["where"] + no["what"]
    assert not (host.store / "state" / lock.id).exists(), "a refusal keeps nothing"
    plant(host, lock, bad)
    if what == "lock":
        assert FAULTS[fault] in said(admit(host, lock, signers, ok=False)["error"], signers)
    for error in (check(host, lock, signers, ok=False)["error"], activate(host, lock, signers)):
        assert FAULTS[fault] in said(error, signers), error
    untouched(host)
    plant(host, lock, sent(keys, lock))  # the control: with good ones in the same place it goes on
    assert admit(host, lock, signers)["built"] and check(host, lock, signers)["signer"]


def test_what_was_signed_and_is_not_now_is_refused_and_what_was_kept_stays(host, lock, contents, keys, signers):
    keep(host, lock, signers, sent(keys, lock))
    passed(host, lock)
    host.incoming(contents)
    for release_now in (lock, other(lock)):
        bare = {what: {**one, "signature": None} for what, one in sent(keys, release_now).items()}
        no = keep(host, release_now, signers, bare, ok=False)["error"]
        assert "asks for a signature of group_data/locks/lab.json" in no["what"]
        assert no["next"].startswith("ssh-keygen -Y sign -n hf-offline -f KEY group_data/locks/lab.json")
    for error in (admit(host, other(lock), signers, ok=False)["error"], activate(host, other(lock), signers)):
        assert "has none on this machine" in said(error, signers)
    untouched(host)
    assert check(host, lock, signers)["signer"] == "alice@example.org"


def test_where_no_list_is_nothing_is_asked_and_what_is_sent_is_kept_for_later(host, lock, contents, keys, signers):
    nowhere = signers.with_name("none")
    host.incoming(contents)
    bare = {what: {**one, "signature": None} for what, one in sent(keys, lock).items()}
    assert not keep(host, lock, nowhere, bare)["kept"]
    assert admit(host, lock, nowhere)["built"] and check(host, lock, nowhere) == {"ok": True, "required": False}
    assert check(host, lock, signers, ok=False), "the list came later: what is here was never signed"
    assert keep(host, lock, nowhere, sent(keys, lock))["kept"]
    passed(host, lock)
    assert check(host, lock, signers)["signer"], "and what was sent before the list came"


def test_goldens_that_were_changed_on_the_host_stop_the_switch(host, lock, keys, signers):
    keep(host, lock, signers, sent(keys, lock))
    passed(host, lock, goldens_of(lock.id, "evil"))
    assert "does not fit" in activate(host, lock, signers)["what"]
    (host.store / "state" / lock.id / "goldens.json").unlink()
    assert "signed goldens" in activate(host, lock, signers)["what"]
    assert not (host.store / "journal.jsonl").exists()


def test_a_lock_may_be_admitted_before_there_are_goldens_and_not_activated(host, lock, contents, keys, signers):
    host.incoming(contents)
    keep(host, lock, signers, {**sent(keys, lock), "goldens": None})
    assert admit(host, lock, signers)["built"]
    passed(host, lock)
    assert "asks for signed goldens" in activate(host, lock, signers)["what"]


def test_goldens_that_no_smoke_test_has_passed_with_take_nothing_from_those_that_one_has(host, lock, keys, signers):
    """A deploy that fails in the smoke test leaves the host able to go back to what was signed and proven before."""
    keep(host, lock, signers, sent(keys, lock))
    passed(host, lock)
    later = {**sent(keys, lock), "goldens": entry(keys, "goldens", goldens_of(lock.id, "later"))}
    assert keep(host, lock, signers, later)["kept"]
    host.run("engine", "candidate", "--release", lock.id, document={"goldens.json": later["goldens"]["text"]})
    assert check(host, lock, signers)["signer"]
    assert (host.store / "state" / lock.id / "goldens.json").read_text() == goldens_of(lock.id)
    Records(str(host.store)).pass_candidate(lock.id)
    assert (
        check(host, lock, signers)["signer"]
        and "later" in (host.store / "state" / lock.id / "goldens.json").read_text()
    )


LOOSE = {
    "writable by its group": lambda path: path.chmod(0o664),
    "writable by everybody": lambda path: path.chmod(0o666),
    "somebody else's": lambda path: os.chown(path, 65534, 65534),
    "in a directory that others may write": lambda path: path.parent.chmod(0o777),
    "in somebody else's directory": lambda path: os.chown(path.parent, 65534, 65534),
    "a link": lambda path: (path.rename(path.with_name("real")), path.symlink_to("real")),
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("nothing")),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("how", LOOSE)
def test_a_list_that_others_could_change_is_refused_and_seen_in_preflight(host, lock, contents, keys, signers, how):
    host.incoming(contents)
    plant(host, lock, sent(keys, lock))
    assert writable_by_others(machine.signers(str(signers))) == ""
    LOOSE[how](signers)
    assert str(signers.parent) in writable_by_others(machine.signers(str(signers)))
    for error in (
        keep(host, lock, signers, sent(keys, lock), ok=False)["error"],
        admit(host, lock, signers, ok=False)["error"],
        activate(host, lock, signers),
    ):
        assert "can be changed by others than root" in said(error, signers) and error["where"] == str(signers)
    untouched(host)


def test_a_list_that_cannot_be_looked_at_is_not_taken_for_none(host, lock, contents, keys, signers):
    host.incoming(contents)
    below = signers / "allowed_signers"  # its directory is a file
    admit(host, lock, below, ok=False)
    assert activate(host, lock, below)
    untouched(host)
    assert writable_by_others(machine.signers(str(below))) and machine.signers(str(signers.with_name("none"))) is None


@pytest.mark.parametrize(
    ("options", "good"),
    [
        ('namespaces="hf-offline" ', True),
        ('namespaces="git,file" ', False),
        ('valid-before="20200101" ', False),
        ("cert-authority ", False),
    ],
)
def test_options_of_the_list_are_left_to_ssh_keygen(host, lock, keys, signers, options, good):
    signers.write_text(listed(keys, options=options))
    answer = keep(host, lock, signers, sent(keys, lock), ok=good)
    if not good:
        error = answer["error"]
        assert "does not allow the key" in error["what"] and "SHA256:" in error["found"]


def test_a_certificate_of_a_listed_authority_signs(host, lock, keys, signers):
    keygen("-q", "-s", keys / "eve", "-I", "release", "-n", "release@example.org", keys / "alice.pub")
    signers.write_text(listed(keys, "eve", "cert-authority ").replace("eve@", "release@"))
    (keys / "alice.pub").unlink()
    (keys / "alice-cert.pub").rename(keys / "alice.pub")
    assert keep(host, lock, signers, sent(keys, lock))["kept"]
    passed(host, lock)
    assert check(host, lock, signers)["signer"] == "release@example.org"


def test_without_ssh_keygen_nothing_is_admitted(host, lock, contents, keys, signers, tmp_path):
    host.incoming(contents)
    plant(host, lock, sent(keys, lock))
    words = ("--store", host.store, "--signers", signers)
    bare = {"PATH": str(tmp_path)}
    answer = host.call("store", "admit", *words, document=dict(lock.document), ok=False, env=bare)
    assert "ssh-keygen: is missing" in describe(answer["error"])
    untouched(host)


# ---------------------------------------------------------------------------------------- the files on the control machine


@pytest.fixture
def git(tmp_path, monkeypatch, lock, keys):
    """A checkout with a signed lock and signed goldens; -> its settings, with `sign` on."""
    monkeypatch.chdir(tmp_path)
    for what, one in sent(keys, lock).items():
        path = tmp_path / NAMES[what]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(one["text"])
        keygen("-q", "-Y", "sign", "-n", "hf-offline", "-f", keys / "alice", path)
    return read_settings([("test", {**SETTINGS, "sign": True})])


def test_what_travels_is_what_git_has_byte_for_byte(git, lock, host, signers):
    signed_files.check_signatures(git, lock)
    assert signed_files.unsigned_files(git, lock) == []
    travels = signed_files.as_sent(git, lock)
    keep(host, lock, signers, travels)
    passed(host, lock)
    kept = release.signatures((host.store / "state" / lock.id / "signed.json").read_text())
    assert kept == signed_files.signatures(git, True), "so a second deploy sees that this host has them"


def test_an_unsigned_file_is_refused_before_any_host_is_touched(git, lock):
    (git_files.FOLDER / "lab.goldens.json.sig").unlink()
    with pytest.raises(Refused) as no:
        signed_files.check_signatures(git, lock)
    assert no.value.error["next"] == f"ssh-keygen -Y sign -n hf-offline -f KEY {NAMES['goldens']}"
    (git_files.FOLDER / "lab.json.sig").unlink()
    with pytest.raises(Refused) as no:
        signed_files.check_signatures(git, lock)
    assert no.value.error["where"] == f"{NAMES['lock']} and {NAMES['goldens']}"
    off = git.model_copy(update={"sign": False})
    signed_files.check_signatures(off, lock)
    assert signed_files.unsigned_files(off, lock) == list(NAMES.values()), (
        "and a host that asks for them hears of it all the same"
    )


@pytest.mark.parametrize("what", NAMES)
def test_a_file_that_was_changed_after_it_was_signed_is_refused_before_any_host_is_touched(git, lock, what):
    path = git_files.FOLDER / NAMES[what].rpartition("/")[2]
    path.write_text(path.read_text() + " ")
    for chosen in (git, git.model_copy(update={"sign": False})):
        with pytest.raises(Refused, match="has a signature that does not fit"):
            signed_files.check_signatures(chosen, lock)


def test_a_signed_lock_in_a_form_of_its_own_is_refused(git, lock, keys):
    path = git_files.FOLDER / "lab.json"
    path.write_text(json.dumps(dict(lock.document)))
    git_files.signature_path(path).unlink()
    keygen("-q", "-Y", "sign", "-n", "hf-offline", "-f", keys / "alice", path)
    with pytest.raises(Refused, match="form of its own"):
        signed_files.check_signatures(git, lock)


def test_goldens_of_another_release_are_not_asked_for_nor_sent(git, lock):
    later = other(lock)
    git_files.replace(lock_path(git), lock_text(later.document))
    assert not (git_files.FOLDER / "lab.json.sig").exists(), "a new lock has no signature, not an old one"
    assert (
        signed_files.unsigned_files(git, later) == [NAMES["lock"]]
        and signed_files.as_sent(git, later)["goldens"] is None
    )
