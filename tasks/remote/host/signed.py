"""The operator's signatures of lock and goldens, held against this machine's own list of who may sign.

    signed keep  --store S --release ID   (stdin: {"lock": {"path", "text", "signature"}, "goldens": the same or null})
    signed check --store S --release ID   lock and goldens as they are kept here

Where the list is (SIGNERS), nothing is admitted and nothing activated without a signature by a key of it, whatever
the control machine says. The machine's administrator writes that file; nothing of ours ever does. What a line of it means
(certificates, namespaces, dates) is ssh-keygen's business: we do not read it. `--signers` is the tests' own list.

state/<id>/signed.json holds the lock's text and both signatures, state/<id>/goldens.json is what the second one is of: so a
rollback needs nobody. What was sent lies in state/<id>/candidate/ until a smoke test has passed with it (engine.py).
One JSON line on standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile

from tasks.remote.common.files import print_answer, read_text, remove, write_file
from tasks.remote.host.records import Records
from tasks.shared.errors import Refused
from tasks.shared.lock import parse_lock
from tasks.shared.signatures import NAMESPACE, SIGNERS, sign_command, writable_by_others

SIGNED = "signed.json"
WITHIN = 60  # seconds; ssh-keygen takes milliseconds


def required(signers):
    """Whether this machine asks for signatures: its list is there. Refused where others than root could change it."""
    try:
        os.lstat(signers)
    except FileNotFoundError:
        return False
    paths = [os.path.abspath(signers)]
    while paths[-1] != "/":
        paths.append(os.path.dirname(paths[-1]))
    found = [(path, os.lstat(path)) for path in paths]
    loose = writable_by_others((path, info.st_uid, info.st_mode) for path, info in found)
    if loose:
        mend = f"chown root, chmod go-w: {signers} and the directories above it"
        raise Refused(signers, "can be changed by others than root", "root's alone, and no link", loose, mend)
    return True


def keygen(verb, *words, text=b""):
    """ssh-keygen -Y VERB -> (whether it says yes, its lines, its complaint)."""
    try:
        done = subprocess.run(["ssh-keygen", "-Y", verb, *words], input=text, capture_output=True, timeout=WITHIN)
    except FileNotFoundError:
        raise Refused("ssh-keygen", "is missing; it checks signatures", next="install OpenSSH's client") from None
    except subprocess.TimeoutExpired:
        raise Refused("ssh-keygen", f"took longer than {WITHIN} s", next="run it by hand there") from None
    complaint = "; ".join(done.stderr.decode("utf-8", "replace").strip().splitlines()[:3])
    return done.returncode == 0, done.stdout.decode("utf-8", "replace").splitlines(), complaint


def verify(signers, entry):
    """Refused unless the signature of `entry` is of this very text, in our namespace, by an allowed signer; -> who."""
    path, text, mend = entry["path"], entry["text"].encode("utf-8"), f"{sign_command(entry['path'])}, then deploy.py"
    if not entry["signature"]:
        raise Refused(signers, f"asks for a signature of {path}", f"{path}.sig", "none: it is not signed", mend)
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "signature")
        write_file(file, entry["signature"])
        fits, said, complaint = keygen("check-novalidate", "-n", NAMESPACE, "-s", file, text=text)
        if not fits:
            expected = f"one of these very bytes, in the namespace {NAMESPACE}"
            raise Refused(signers, f"{path} has a signature that does not fit", expected, complaint, mend)
        _, signs, nobody = keygen("find-principals", "-s", file, "-f", signers)
        for who in signs:
            words = ("-n", NAMESPACE, "-I", who, "-s", file, "-f", signers)
            good, _, nobody = keygen("verify", *words, text=text)
            if good:
                return who
    found, other = f"{' '.join(said)} ({nobody})", "or the administrator of this host allows that key"
    raise Refused(
        signers, f"does not allow the key that signed {path}", "a key of this file", found, f"{mend}; {other}"
    )


def is_of(release_id, path, found):
    """A signature that is good, of another release: it proves nothing here."""
    if found != release_id:
        raise Refused(path, "is another release's", str(release_id)[:12], str(found)[:12], "git checkout of that file")


def kept(signers, release_id, *folders):
    """The first signed.json of these folders, its lock verified and this release's own."""
    path = os.path.join(folders[-1], SIGNED)
    text = next(filter(None, (read_text(os.path.join(folder, SIGNED)) for folder in folders)), None)
    if text is None:
        what = f"asks for a signature, and release {release_id[:12]} has none on this machine"
        names = ("group_data/locks/LOCK.json", "group_data/locks/LOCK.goldens.json")
        raise Refused(signers, what, path, "no file", f"{sign_command(*names)}, then deploy.py of that lock")
    entries = json.loads(text)
    verify(signers, entries["lock"])
    is_of(release_id, entries["lock"]["path"], parse_lock(entries["lock"]["text"]).id)
    return entries


def check_lock(store, release_id, signers=SIGNERS):
    """Before bytes are admitted: the lock that they are held against is one that the operator signed."""
    if required(signers):
        kept(signers, release_id, Records(store).candidate(release_id), os.path.join(store, "state", release_id))


def check(store, release_id, signers=SIGNERS):
    """Before a switch, forward or back: the lock, and the goldens that the service will be held against."""
    Records(store).settle(release_id)
    if not required(signers):
        return {"required": False}
    folder = os.path.join(store, "state", release_id)
    goldens = kept(signers, release_id, folder)["goldens"]
    text = read_text(os.path.join(folder, "goldens.json"))
    if goldens is None or text is None:
        what = f"asks for signed goldens, and release {release_id[:12]} has none on this machine"
        raise Refused(signers, what, f"{folder}/goldens.json and its signature", "none", "deploy.py")
    who = verify(signers, {**goldens, "text": text})
    is_of(release_id, goldens["path"], json.loads(text).get("release"))
    return {"required": True, "signer": who}


def keep(store, release_id, sent, signers=SIGNERS):
    """Verify what the controller sent, where this machine asks for it; then keep it, as what is to be tested next.

    A refusal leaves what was kept.
    """
    lock, goldens = sent["lock"], sent["goldens"]
    is_of(release_id, lock["path"], parse_lock(lock["text"], lock["path"]).id)
    if required(signers):
        for entry in filter(None, (lock, goldens)):
            verify(signers, entry)
    if goldens:
        is_of(release_id, goldens["path"], json.loads(goldens["text"]).get("release"))
    folder = Records(store).candidate(release_id)
    signature = None
    if goldens and goldens["signature"]:
        signature = {key: goldens[key] for key in ("path", "signature")}
    text = json.dumps({"lock": lock, "goldens": signature}, sort_keys=True)
    if not lock["signature"] or text == read_text(os.path.join(store, "state", release_id, SIGNED)):
        remove(os.path.join(folder, SIGNED))  # an earlier one's
    else:
        os.makedirs(folder, exist_ok=True)
        write_file(os.path.join(folder, SIGNED), text)
    return {"kept": bool(lock["signature"])}


def main(argv):
    parser = argparse.ArgumentParser(prog="signed")
    parser.add_argument("verb", choices=["keep", "check"])
    parser.add_argument("--store", required=True)
    parser.add_argument("--release", required=True)
    parser.add_argument("--signers", default=SIGNERS)
    args = parser.parse_args(argv)
    os.umask(0o022)
    return print_answer(lambda: run(args), args.store)


def run(args):
    if args.verb == "check":
        return check(args.store, args.release, args.signers)
    return keep(args.store, args.release, json.load(sys.stdin), args.signers)
