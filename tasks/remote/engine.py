"""The container engine on a host: loads the release's image and proves its id, runs the smoke test, reads embeddings.

    engine load       --store S --deadline SEC   (stdin: lock)
    engine smoke      --store S --release ID --project P --project-directory D --file F [--file F2] --deadline SEC
    engine embeddings --store S --release ID

Docker shows the config's digest as an image's id with its classic store and the manifest's with containerd's: both are
in the lock, and either proves the image. One JSON line on standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

import release
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


def write(path, document):
    staged = f"{path}.new"
    with open(staged, "w", encoding="ascii") as file:
        json.dump(document, file, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(staged, 0o644)
    os.rename(staged, path)


def smoke(args):
    """Run the Compose service `smoke` once, bounded; its JSON goes to state/<release>/ and to the caller."""
    name = f"hf-smoke-{args.release[:12]}-{os.getpid()}"
    words = ["compose", "-p", args.project, "--project-directory", args.project_directory]
    for path in args.file:
        words += ["-f", path]
    words += ["--profile", "smoke", "run", "--rm", "-T", "--no-deps", "--name", name, "smoke"]
    try:
        done = docker(*words, stdin=subprocess.DEVNULL, timeout=args.deadline)
    except subprocess.TimeoutExpired as late:
        docker("rm", "-f", name)
        said = (
            (late.stderr or b"").decode("utf-8", "replace")[-300:]
            if isinstance(late.stderr, bytes)
            else str(late.stderr)[-300:]
        )
        raise Refused(
            "smoke test", f"took longer than {args.deadline} s", found=said, next="setting smoke_deadline"
        ) from None
    answer = last_json(done.stdout)
    if answer is None:
        what = (
            "was killed: out of memory?"
            if done.returncode == 137
            else f"ended with code {done.returncode} and no result"
        )
        said = (done.stderr or done.stdout).strip()[-600:]
        raise Refused("smoke test", what, "one JSON line", said, f"docker {' '.join(words[:-1])} smoke")
    folder = os.path.join(args.store, "state", args.release)
    os.makedirs(folder, exist_ok=True)
    answer["at"] = time.strftime("%FT%TZ", time.gmtime())
    write(os.path.join(folder, "smoke.json"), {key: value for key, value in answer.items() if key != "embeddings"})
    if answer.get("embeddings"):
        write(os.path.join(folder, "embeddings.json"), answer["embeddings"])
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
    if not os.path.exists(path):
        raise Refused(path, "does not exist", "embeddings of a smoke test", "no file", "deploy.py, until it stops")
    with open(path, encoding="ascii") as file:
        return {"embeddings": json.load(file)}


def main(argv):
    parser = argparse.ArgumentParser(prog="engine")
    parser.add_argument("verb", choices=["load", "smoke", "embeddings"])
    parser.add_argument("--store", required=True)
    parser.add_argument("--release", default="")
    parser.add_argument("--project", default="")
    parser.add_argument("--project-directory", default="")
    parser.add_argument("--file", action="append", default=[])
    parser.add_argument("--deadline", type=int, default=3600)
    args = parser.parse_args(argv)
    os.umask(0o022)
    try:
        if args.verb == "load":
            answer = load(args.store, release.parse(sys.stdin.read(), "the lock from the controller"), args.deadline)
        else:
            answer = smoke(args) if args.verb == "smoke" else embeddings(args.store, args.release)
    except Refused as no:
        answer = {"ok": False, "error": no.error}
    answer = {"ok": True, **answer}
    print(json.dumps(answer, ensure_ascii=True, sort_keys=True))
    return 0 if answer["ok"] else 1
