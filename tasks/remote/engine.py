"""The container engine on a machine: exports and loads the backend image and proves its id, runs the smoke test.

    engine export     --store S --source SKOPEO --name NAME --within SEC   image -> blobs/; prints its entry in the lock
    engine load       --store S --within SEC   (stdin: lock)
    engine smoke      --store S --release ID --project P --project-directory D --file F [--file F2] --within SEC
    engine embeddings --store S --release ID

Docker shows the config's digest as an image's id with its classic store and the manifest's with containerd's: both are
in the lock, and either proves the image. One JSON line on standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time

import release
from files import answered, digest, keep, locked, now, read, remove, write
from release import Refused


def docker(*words, **more):
    return subprocess.run(["docker", *words], capture_output=True, text=True, errors="replace", **more)


def image_id(name):
    """The id that the engine shows for an image name, or None."""
    done = docker("image", "inspect", "-f", "{{.Id}}", name)
    return done.stdout.strip() if done.returncode == 0 else None


def load(store, lock, deadline):
    """The image of the release in the engine, under its own tag, with an id that the lock knows."""
    tag, started = lock.image.tag, time.monotonic()
    if image_id(tag) in lock.image.ids:
        return {"loaded": False, "id": image_id(tag), "seconds": 0.0}
    folder = os.path.join(store, "releases", lock.id, "image")
    tar = subprocess.Popen(["tar", "-C", folder, "-cf", "-", "."], stdout=subprocess.PIPE)
    try:
        done = docker("load", "--quiet", stdin=tar.stdout, timeout=deadline)
    except subprocess.TimeoutExpired:
        raise Refused(tag, f"docker load took longer than {deadline} s", next="look at Docker's disk") from None
    finally:
        tar.stdout.close()
        tar.kill()
        tar.wait()
    if done.returncode:
        raise Refused(tag, "docker load failed", "success", done.stderr.strip()[-300:], "look at Docker's disk and log")
    found = image_id(tag)
    if found not in lock.image.ids:
        docker("image", "rm", tag)
        raise Refused(
            tag, "is another image than the lock says", " or ".join(lock.image.ids), str(found), "tasks/lock.py"
        )
    return {"loaded": True, "id": found, "seconds": round(time.monotonic() - started, 2)}


def smoke(args):
    """Run the Compose service `smoke` once, bounded; its JSON goes to state/<release>/ and to the caller."""
    # Whatever becomes of this test, an earlier one's yes is not its answer.
    remove(os.path.join(args.store, "state", args.release, "smoke.json"))
    name = f"hf-smoke-{args.release[:12]}-{os.getpid()}"
    words = ["compose", "-p", args.project, "--project-directory", args.project_directory]
    for path in args.file:
        words += ["-f", path]
    words += ["--profile", "smoke", "run", "--rm", "-T", "--no-deps", "--name", name, "smoke"]
    try:
        done = docker(*words, stdin=subprocess.DEVNULL, timeout=args.within)
    except subprocess.TimeoutExpired as late:
        docker("rm", "-f", name)
        said = (late.stderr or b"").decode("utf-8", "replace")[-300:]  # bytes, whatever `text` says
        what = f"took longer than {args.within} s"
        raise Refused("smoke test", what, found=said, next="setting smoke_deadline") from None
    answer = last_json(done.stdout)
    if answer is None:
        killed = done.returncode == 137
        what = "was killed: out of memory?" if killed else f"ended with code {done.returncode} and no result"
        said = (done.stderr or done.stdout).strip()[-600:]
        raise Refused("smoke test", what, "one JSON line", said, f"docker {' '.join(words[:-1])} smoke")
    folder = os.path.join(args.store, "state", args.release)
    os.makedirs(folder, exist_ok=True)
    answer["at"] = now()
    kept = {key: value for key, value in answer.items() if key != "embeddings"}
    write(os.path.join(folder, "smoke.json"), json.dumps(kept, sort_keys=True))
    if answer.get("embeddings"):
        write(os.path.join(folder, "embeddings.json"), json.dumps(answer["embeddings"], sort_keys=True))
    if not answer.get("ok") or done.returncode:
        failing = [f"{check['name']}: {check['detail']}" for check in answer.get("checks", []) if not check["ok"]]
        error = answer.get("error") or {"where": "smoke test", "what": "says no", "found": "; ".join(failing)[:900]}
        return {"ok": False, "error": error, "checks": answer.get("checks")}
    return answer


def last_json(text):
    for line in reversed(text.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and "ok" in found:
            return found
    return None


def embeddings(store, release_id):
    path = os.path.join(store, "state", release_id, "embeddings.json")
    text = read(path)
    if text is None:
        raise Refused(path, "does not exist", "embeddings of a smoke test", "no file", "deploy.py, until it stops")
    return {"embeddings": json.loads(text)}


def export(args):
    """Export the backend image by skopeo and keep its blobs; -> the lock's `image`.

    From an engine, layers stay uncompressed: their digests are then the engine's own (diff ids), so exporting again
    gives the same. From a registry they stay as the registry has them.
    """
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
    for blob in [entry["manifest"], entry["config"], *entry["layers"]]:
        path = os.path.join(work, "blobs/sha256", blob["digest"][7:])
        if os.path.exists(path):  # a layer can stand in an image twice
            if digest(path) != blob["digest"][7:]:
                raise Refused(args.source, "exported a blob that is not its digest", blob["digest"])
            keep(args.store, path, blob["digest"][7:])
    shutil.rmtree(work)
    return {"image": entry}


def main(argv):
    parser = argparse.ArgumentParser(prog="engine")
    parser.add_argument("verb", choices=["export", "load", "smoke", "embeddings"])
    parser.add_argument("--store", required=True)
    for option in ("--release", "--project", "--project-directory", "--source", "--name"):
        parser.add_argument(option, default="")
    parser.add_argument("--file", action="append", default=[])
    parser.add_argument("--within", type=int, default=3600)
    args = parser.parse_args(argv)
    os.umask(0o022)
    return answered(lambda: run(args), args.store)


def run(args):
    if args.verb == "smoke":
        return smoke(args)
    if args.verb == "embeddings":
        return embeddings(args.store, args.release)
    with locked(os.path.join(args.store, ".lock"), "is busy", within=60):
        if args.verb == "export":
            return export(args)
        return load(args.store, release.parse(sys.stdin.read(), "the lock from the controller"), args.within)
