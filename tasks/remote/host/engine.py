"""The container engine on a machine: exports and loads the backend image and proves its id, runs the smoke test.

    engine export     --store S --source SKOPEO --name NAME --within SEC   image -> blobs/; prints its entry in the lock
    engine load       --store S --within SEC   (stdin: lock)
    engine bring      --store S --release ID --project P --project-directory D --file F [--file F2] --within SEC
                      (stdin: lock)   delivery `online`: the service hf-model loads the volume; then every byte is hashed
    engine candidate  --store S --release ID --within SEC   (stdin: {name: text})   what is to be tested; -> its folder
    engine smoke      --store S --release ID --project P --project-directory D --file F [--file F2] --within SEC
    engine embeddings --store S --release ID

What a smoke test takes (override, goldens) and says (smoke.json, embeddings.json) stays in state/<id>/candidate/ until one
passes: what the release was proven with before stands till then, and is what a rollback goes by.

Docker shows the config's digest as an image's id with its classic store and the manifest's with containerd's: both are
in the lock, and either proves the image. One JSON line on standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time

from tasks.remote.common.files import (
    hash_file,
    hold_lock,
    keep_blob,
    print_answer,
    read_text,
    remove,
    utc_now,
    write_file,
)
from tasks.remote.host import bake, signed, volume
from tasks.remote.host.records import VERDICT, Records
from tasks.remote.host.store import held, recreate
from tasks.shared.answers import last_json_object
from tasks.shared.errors import Refused
from tasks.shared.lock import parse_lock
from tasks.shared.stack import CANDIDATE, LOADER


def docker(*words, **more):
    return subprocess.run(["docker", *words], capture_output=True, text=True, errors="replace", **more)


def image_id(name):
    """The id that the engine shows for an image name, or None."""
    done = docker("image", "inspect", "-f", "{{.Id}}", name)
    return done.stdout.strip() if done.returncode == 0 else None


def load(store, lock, deadline):
    """The image of the release in the engine, under its own tag, with an id that the lock or this machine's baking knows."""
    tag, started = lock.tag, time.monotonic()
    ids = lock.image_ids(bake.recorded(store, lock))
    if image_id(tag) in ids:
        return {"loaded": False, "id": image_id(tag), "seconds": 0.0}
    if lock.delivery == "bake":
        baked = bake.bake(store, lock)
        bake.keep_record(store, lock, baked)
        ids = lock.image_ids(baked.record())
        loaded(tag, deadline, lambda out: bake.stream(out, store, lock, baked))
    else:
        folder = os.path.join(store, "releases", lock.id, "image")
        loaded(tag, deadline, lambda out: subprocess.run(["tar", "-C", folder, "-cf", "-", "."], stdout=out))
    found = image_id(tag)
    if found not in ids:
        docker("image", "rm", tag)
        raise Refused(tag, "is another image than the lock says", " or ".join(ids), str(found), "tasks/lock.py")
    return {"loaded": True, "id": found, "seconds": round(time.monotonic() - started, 2)}


def loaded(tag, deadline, feed):
    """`docker load` of what `feed` writes into its standard input; ended when the deadline passes."""
    started = time.monotonic()
    with subprocess.Popen(
        ["docker", "load", "--quiet"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as loader:
        watch = threading.Timer(deadline, loader.kill)
        watch.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended; its code and words say why
                feed(loader.stdin)
            _, said = loader.communicate()
        finally:
            watch.cancel()
            loader.kill()
    if loader.returncode:
        late = time.monotonic() - started >= deadline
        what = f"docker load took longer than {deadline} s" if late else "docker load failed"
        words = said.decode("utf-8", "replace").strip()[-300:]
        raise Refused(tag, what, "success", words, "look at Docker's disk and log")


def candidate(store, release_id, texts, within=60.0):
    """The files that the next smoke test takes; what an earlier one left there, but its own signatures, goes."""
    folder = Records(store).candidate(release_id)
    os.makedirs(folder, exist_ok=True)
    with testing(store, release_id, within):
        os.makedirs(folder, exist_ok=True)  # what we waited for may have passed
        for name in set(os.listdir(folder)) - {signed.SIGNED}:
            remove(os.path.join(folder, name))
        for name, text in texts.items():
            write_file(os.path.join(folder, name), text)
    return {"folder": folder}


def testing(store, release_id, within=60.0):
    """One smoke test of a release at a time: one that outlives its controller passes with its own files, or not at all."""
    return hold_lock(os.path.join(store, "state", release_id, ".smoke.lock"), "is being smoke-tested", within)


def smoke(args):
    """Run the Compose service `smoke` once, bounded; its JSON goes to the caller, and with the candidate."""
    with testing(args.store, args.release):
        return tested(args, Records(args.store).candidate(args.release))


def tested(args, folder):
    answer, code = once(args, "smoke", "smoke test", "setting smoke_deadline", env={CANDIDATE: folder})
    answer |= {"at": utc_now(), "ok": bool(answer.get("ok")) and code == 0}
    kept = {key: value for key, value in answer.items() if key != "embeddings"}
    if answer.get("embeddings"):
        write_file(os.path.join(folder, "embeddings.json"), json.dumps(answer["embeddings"], sort_keys=True))
    write_file(os.path.join(folder, VERDICT), json.dumps(kept, sort_keys=True))  # last: with it, the rest is passed
    if not answer["ok"]:
        failing = [f"{check['name']}: {check['detail']}" for check in answer.get("checks", []) if not check["ok"]]
        error = answer.get("error") or {"where": "smoke test", "what": "says no", "found": "; ".join(failing)[:900]}
        return {"ok": False, "error": error, "checks": answer.get("checks")}
    Records(args.store).pass_candidate(args.release)
    return answer


def once(args, service, what, mend, more=(), env=None):
    """Run a service of ours by Compose, bounded -> (its JSON, its exit code). `env`: variables that its file has."""
    name = f"hf-{service.removeprefix('hf-')}-{args.release[:12]}-{os.getpid()}"
    words = ["compose", "-p", args.project, "--project-directory", args.project_directory]
    for path in args.file:
        words += ["-f", path]
    words += ["--profile", "smoke", "run", "--rm", "-T", "--no-deps", "--name", name, *more, service]
    try:
        done = docker(*words, stdin=subprocess.DEVNULL, timeout=args.within, env={**os.environ, **(env or {})})
    except subprocess.TimeoutExpired as late:
        docker("rm", "-f", name)
        said = (late.stderr or b"").decode("utf-8", "replace")[-300:]  # bytes, whatever `text` says
        raise Refused(what, f"took longer than {args.within} s", found=said, next=mend) from None
    finally:
        no_networks()
    answer = last_json_object(done.stdout.splitlines(), "ok")
    if answer is None:
        killed = done.returncode == 137
        how = "was killed: out of memory?" if killed else f"ended with code {done.returncode} and no result"
        said = (done.stderr or done.stdout).strip()[-600:]
        given = "".join(f"{key}={value} " for key, value in (env or {}).items())
        raise Refused(what, how, "one JSON line", said, f"{given}docker {' '.join(words)}")
    return answer, done.returncode


def no_networks():
    """Compose makes the stack's network for a run that uses none, and leaves it; an engine has addresses for some thirty."""
    ours = docker("network", "ls", "-q", "--filter", "name=^hf-smoke-").stdout.split()
    if ours:
        docker("network", "rm", *ours)


def bring(args, lock):
    """The volume of a release that the host loads by itself, each byte as locked; what is not is loaded once more."""
    loaded = 0
    for more in ([], ["--env", "HF_OFFLINE_FULL=1"]):  # what has the right size is read only where it must be
        answer, _ = once(args, LOADER, "loading the model", "setting fetch_deadline", more)
        if not answer.get("ok"):
            return answer
        loaded += answer["bytes"]
        found = volume.faults(lock)
        if not found:
            return {"bytes": loaded}
        if lock.id in Records(args.store).serving():
            recreate(args.store)  # it may have mapped what is wrong
        volume.clear(lock, found)
    odd = ", ".join(f"{path} {what}" for path, what in sorted(found.items())[:3])
    raise Refused(lock.volume, "does not match the lock", "every byte as locked", odd, "who writes there?")


def embeddings(store, release_id):
    path = os.path.join(store, "state", release_id, "embeddings.json")
    # A test that did not pass is newer than the one that did: who accepts its embeddings has looked at them.
    text = read_text(os.path.join(Records(store).candidate(release_id), "embeddings.json")) or read_text(path)
    if text is None:
        raise Refused(path, "does not exist", "embeddings of a smoke test", "no file", "deploy.py, until it stops")
    return {"embeddings": json.loads(text)}


def identity(source):
    """What an image is, said without its bytes: the engine's id of it, or its manifest in the registry; None when neither answers."""
    transport, _, name = source.partition(":")
    try:
        if transport == "docker-daemon":
            return image_id(name)
        done = subprocess.run(["skopeo", "inspect", "--raw", source], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None  # the export itself will say what is wrong
    return hashlib.sha256(done.stdout).hexdigest() if done.returncode == 0 else None


def blobs(entry):
    """{sha256: size} of an image's entry in the lock; a layer can stand in an image twice."""
    return {part["digest"][7:]: part["size"] for part in (entry["manifest"], entry["config"], *entry["layers"])}


def whole(store, entry):
    return held(store, blobs(entry)) == blobs(entry)


def export(args):
    """Export the backend image by skopeo and keep its blobs; -> the lock's `image`. What was exported before is not moved again.

    From an engine, layers stay uncompressed: their digests are then the engine's own (diff ids), so exporting again
    gives the same. From a registry they stay as the registry has them.
    """
    memory = os.path.join(args.store, "state", "exported.json")
    what, known = identity(args.source), json.loads(read_text(memory) or "{}")
    if what in known and whole(args.store, known[what]):
        return {"image": {**known[what], "name": args.name}}
    work = os.path.join(args.store, "taken", "image")
    shutil.rmtree(work, ignore_errors=True)
    command = ["skopeo", "copy", "--quiet", "--dest-oci-accept-uncompressed-layers", args.source, f"oci:{work}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=args.within)
    if done.returncode:
        said = done.stderr.strip()[-300:]
        raise Refused(args.source, "cannot be exported", "skopeo copy to succeed", said, "setting image")
    with open(os.path.join(work, "index.json"), encoding="utf-8") as file:
        top = json.load(file)["manifests"][0]
    with open(os.path.join(work, "blobs/sha256", top["digest"][7:]), encoding="utf-8") as file:
        manifest = json.load(file)
    entry = {
        "name": args.name,
        "media_type": top["mediaType"],
        "manifest": {"digest": top["digest"], "size": top["size"]},
        "config": {key: manifest["config"][key] for key in ("digest", "size")},
        "layers": [{key: layer[key] for key in ("digest", "size")} for layer in manifest["layers"]],
    }
    for sha256 in blobs(entry):
        path = os.path.join(work, "blobs/sha256", sha256)
        if hash_file(path) != sha256:
            raise Refused(args.source, "exported a blob that is not its digest", sha256)
        keep_blob(args.store, path, sha256)
    shutil.rmtree(work)
    if what:
        kept = {name: image for name, image in known.items() if name != what and whole(args.store, image)}
        write_file(memory, json.dumps({**kept, what: entry}) + "\n")
    return {"image": entry}


def main(argv):
    parser = argparse.ArgumentParser(prog="engine")
    parser.add_argument("verb", choices=["export", "load", "bring", "candidate", "smoke", "embeddings"])
    parser.add_argument("--store", required=True)
    for option in ("--release", "--project", "--project-directory", "--source", "--name"):
        parser.add_argument(option, default="")
    parser.add_argument("--file", action="append", default=[])
    parser.add_argument("--within", type=int, default=3600)
    args = parser.parse_args(argv)
    os.umask(0o022)
    return print_answer(lambda: run(args), args.store)


def run(args):
    if args.verb == "candidate":
        return candidate(args.store, args.release, json.load(sys.stdin), args.within)
    if args.verb == "smoke":
        return smoke(args)
    if args.verb == "bring":
        return bring(args, parse_lock(sys.stdin.read(), "the lock from the controller"))
    if args.verb == "embeddings":
        return embeddings(args.store, args.release)
    with hold_lock(os.path.join(args.store, ".lock"), "is busy", within=60):
        if args.verb == "export":
            return export(args)
        return load(args.store, parse_lock(sys.stdin.read(), "the lock from the controller"), args.within)
