"""Brings models from the Hub to the bastion's store; runs in a venv with huggingface_hub, the only program that does.

    fetch resolve  --store S --within SEC   (stdin: {"token", "endpoint", "xet", "models": [{"repo", "revision"}]})
    fetch download --store S --within SEC   (stdin: {"token", "endpoint", "xet", "lock": {…}})

The token comes by standard input and is handed to the client call by call: never argv, environment, log or disk. The
client checks downloads by size alone and gives up on a reset, so hashes, retries and the deadline are ours. One JSON
line on standard output.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import logging
import os
import re
import select
import shutil
import signal
import sys
import time

from tasks.remote.common.files import hash_file, hold_lock, keep_blob, print_answer
from tasks.shared.blobs import missing_blobs
from tasks.shared.errors import Refused
from tasks.shared.lock import parse_lock
from tasks.shared.names import COMMIT, absent_names, base_of, check_config, check_paths, git_sha1, is_included

# Statuses that another try will not change.
FINAL = (400, 401, 403, 404)
TRIES = 8  # tries of one file without a byte of progress in between


def prepare(store, document):
    """The environment of the client, before its import: no token of the machine's, no shared blobs, no phoning home."""
    os.environ.update(
        HF_HOME=os.path.join(store, "fetch", "home"),
        HF_ENDPOINT=document["endpoint"],
        HF_HUB_DISABLE_IMPLICIT_TOKEN="1",  # noqa: S106
        HF_HUB_DISABLE_SHARED_BLOBS="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_UPDATE_CHECK="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        HF_HUB_DISABLE_XET="0" if document.get("xet", True) else "1",
        HF_HUB_DOWNLOAD_TIMEOUT="30",
        HF_HUB_ETAG_TIMEOUT="30",
    )
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        os.environ.pop(name, None)
    bundle = "/etc/ssl/certs/ca-certificates.crt"  # the system's, with a corporate CA in it; certifi's has none
    if "SSL_CERT_FILE" not in os.environ and os.path.exists(bundle):
        os.environ["SSL_CERT_FILE"] = bundle
    logging.disable(logging.CRITICAL)  # the client's own hints would name its way to log in, which stores the token


# ------------------------------------------------------------------------------------------------- the Hub's answers


def explained(error, repo, revision, document):
    """The client's error as ours: 401, gated, 404 told apart, with the account and the page to open; None = try again."""
    from huggingface_hub import errors

    page = f"{document['endpoint']}/{repo}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        if not document.get("token"):
            return Refused(
                repo, "is gated, and there is no token", "a token", "none", f"open {page}, then export HF_TOKEN"
            )
        return Refused(
            repo, "is gated", "access granted", f"not for {account(document)}", f"open {page} and ask for access"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return Refused(repo, "has no such revision", revision, "404", f"open {page}/commits/main, then tasks/lock.py")
    if isinstance(error, errors.RepositoryNotFoundError):
        whose = account(document) if document.get("token") else "nobody (no token)"
        return Refused(repo, "does not exist, or is private", "a repository", f"404 for {whose}", f"open {page}")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return Refused(
            repo, "lacks a file at the locked commit", str(error).splitlines()[-1][:200], "404", "tasks/lock.py"
        )
    if status == 401:
        return Refused(document["endpoint"], "refuses the token", "a valid token", "401", f"a new token at {page}")
    if status in FINAL:
        return Refused(repo, "is refused by the Hub", "200", str(status), f"open {page}")
    return None


def account(document):
    from huggingface_hub import HfApi

    try:
        return HfApi(endpoint=document["endpoint"], token=document["token"]).whoami()["name"]
    except Exception:  # the name is a courtesy
        return "this token"


def waited(attempt):
    """Seconds until the next try: what the Hub asks for (Retry-After), else growing and jittered."""
    from tenacity import wait_random_exponential

    response = getattr(attempt.outcome.exception(), "response", None)
    asked = (response.headers.get("Retry-After") or "") if response is not None else ""
    return min(float(asked), 300) if asked.isdigit() else wait_random_exponential(multiplier=0.5, max=30)(attempt)


def patiently(work, repo, revision, document):
    """`work()`, tried again on what passes (resets, 429, 5xx, time-outs); Refused on what does not, or in the end."""
    import tenacity

    def passing(error):
        return not isinstance(error, Refused) and explained(error, repo, revision, document) is None

    tries = tenacity.Retrying(
        retry=tenacity.retry_if_exception(passing),
        wait=waited,
        stop=tenacity.stop_after_attempt(TRIES),
        before_sleep=lambda a: print(f"{repo}: {brief(a.outcome.exception())}; again", file=sys.stderr),
        reraise=True,
    )
    try:
        return tries(work)
    except Refused:
        raise
    except Exception as error:
        reason = explained(error, repo, revision, document)
        if reason is None:
            found = f"{brief(error)}, {TRIES} times"
            reason = Refused(document["endpoint"], "does not answer as a Hub does", repo, found, "look at the network")
        raise reason from None


def brief(error):
    return re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:160]


# ------------------------------------------------------------------------------------------------------------ resolve


def resolve(store, document):
    """Names to commits, files to hashes; an adapter brings its base. -> {"models": […], "asked": {…}, "left_out": {…}}"""
    asked = {model["repo"]: model["revision"] for model in document["models"]}
    queue, models, left_out = dict(asked), [], {}
    bases = set()
    while queue:
        repo, revision = queue.popitem()
        model, left_out[repo] = one(store, repo, revision, document)
        models.append(model)
        if model["base"]:
            bases.add(model["base"])
            if model["base"] not in queue and all(m["repo"] != model["base"] for m in models):
                queue[model["base"]] = "main"
    for model in models:
        if model["repo"] in bases:
            model["role"] = "base"
    return {"models": sorted(models, key=lambda m: m["repo"]), "asked": asked, "left_out": left_out}


def one(store, repo, revision, document):
    from huggingface_hub import HfApi

    api = HfApi(endpoint=document["endpoint"], token=document.get("token") or False)
    info = patiently(lambda: api.model_info(repo, revision=revision), repo, revision, document)
    commit = str(info.sha)
    if not COMMIT.fullmatch(commit):
        raise Refused(repo, "got no commit from the Hub", "40 hex", repr(commit), "is the endpoint a Hub?")
    listing = patiently(lambda: list(api.list_repo_tree(repo, recursive=True, revision=commit)), repo, commit, document)
    entries = {entry.path: entry for entry in listing if hasattr(entry, "blob_id")}
    check_paths(entries)
    names = sorted(path for path in entries if is_included(path))
    if not any(name.endswith(".safetensors") for name in names):
        pickles = [path for path in entries if path.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))]
        raise Refused(
            repo,
            "has no weights as safetensors",
            "*.safetensors",
            ", ".join(pickles[:5]) or "none",
            "another repository",
        )
    files, adapter = {}, None
    for name in names:
        entry = entries[name]
        if entry.lfs:
            files[name] = {"size": entry.lfs.size, "sha256": entry.lfs.sha256, "etag": entry.lfs.sha256}
            continue
        data = small(store, repo, commit, name, document)
        if git_sha1(data) != entry.blob_id or len(data) != entry.size:
            raise Refused(
                f"{repo}: {name}", "is not what the Hub's listing says", entry.blob_id, git_sha1(data), "again"
            )
        files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "etag": entry.blob_id}
        if name.endswith("config.json"):
            config = parsed(f"{repo}: {name}", data)
            check_config(f"{repo}: {name}", config)
            adapter = config if name == "adapter_config.json" else adapter
    base = base_of(f"{repo}: adapter_config.json", adapter) if adapter is not None else None
    model = {"repo": repo, "role": "adapter" if base else "full", "base": base, "commit": commit, "files": files}
    return model | {"absent": absent_names(entries)}, sorted(set(entries) - set(names))


def parsed(where, data):
    try:
        return json.loads(data)
    except ValueError as error:
        raise Refused(where, "is not JSON", found=str(error)) from None


def small(store, repo, commit, name, document):
    path = patiently(lambda: downloaded(store, repo, commit, name, document), repo, commit, document)
    with open(path, "rb") as file:
        return file.read()


# ----------------------------------------------------------------------------------------------------------- download


def downloaded(store, repo, commit, name, document):
    from huggingface_hub import hf_hub_download

    folder = os.path.join(store, "fetch", repo.replace("/", "--"), commit)
    more = {"token": document.get("token") or False, "endpoint": document["endpoint"]}
    return hf_hub_download(repo, name, revision=commit, local_dir=folder, **more)


def have(store):
    blobs = os.path.join(store, "blobs")
    return {entry.name: entry.stat().st_size for entry in os.scandir(blobs)} if os.path.isdir(blobs) else {}


def room(store, need):
    """Space and inodes, before the first byte."""
    stat = os.statvfs(store)
    wanted, free = int(sum(need.values()) * 1.05) + (16 << 20), stat.f_bavail * stat.f_frsize
    if free < wanted:
        raise Refused(store, "has too little space", f"{wanted} bytes", f"{free} free", "free some, or a larger disk")
    if stat.f_files and stat.f_favail < 4 * len(need) + 50:
        raise Refused(store, "has too few inodes", str(4 * len(need) + 50), f"{stat.f_favail} free", "free some")


def download(store, document):
    """Every model blob of the lock that blobs/ lacks; each is hashed before it enters. Whole ones stay across runs."""
    lock = parse_lock(json.dumps(document["lock"]), "the lock from the controller")
    there = have(store)
    need = missing_blobs(lock.model_blobs(), there)
    result = {"files": 0, "bytes": 0, "reused": len(lock.model_blobs()) - len(need)}
    if not need:
        return result
    room(store, need)
    done = set()
    for model in lock.models:
        for name, file in model.files.items():
            if file.sha256 in need and file.sha256 not in done:
                fetch_one(store, model, name, file, document)
                done.add(file.sha256)
                result["files"] += 1
                result["bytes"] += file.size
    return result


def fetch_one(store, model, name, file, document):
    for attempt in (1, 2):
        path = patiently(
            lambda: downloaded(store, model.repo, model.commit, name, document), model.repo, model.commit, document
        )
        found, size = hash_file(path), os.path.getsize(path)
        if found == file.sha256 and size == file.size:
            return keep_blob(store, path, file.sha256)
        # The client thinks that this file is whole; only without it does it download again.
        shutil.rmtree(os.path.join(store, "fetch", model.repo.replace("/", "--")), ignore_errors=True)
        print(f"{model.repo}: {name}: wrong hash, try {attempt}", file=sys.stderr)
    expected = f"{file.size} bytes, sha256 {file.sha256}"
    raise Refused(
        f"{model.repo}: {name}",
        "does not match the lock",
        expected,
        f"{size} bytes, sha256 {found}",
        "who is in between?",
    )


# --------------------------------------------------------------------------------------------------------------- main


def within(deadline, work):
    """`work()` in a process of its own, killed with all it started when the deadline passes: a stalled download ends."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.close(reading)
        # Who enforces the deadline may be killed itself; what it watched must not go on alone, and hold the lock.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, linux/prctl.h
        try:
            answer = {"ok": True, **work()}
        except Refused as no:
            answer = {"ok": False, "error": no.error}
        except OSError as error:
            answer = {"ok": False, "error": Refused(str(error.filename or "fetch"), "failed", found=str(error)).error}
        with open(writing, "w", encoding="ascii") as pipe:
            json.dump(answer, pipe, ensure_ascii=True, sort_keys=True)
        os._exit(0)
    os.close(writing)
    text, until = b"", time.monotonic() + deadline
    while True:
        left = until - time.monotonic()
        if left <= 0 or not select.select([reading], [], [], left)[0]:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            late = Refused(
                "fetch", "did not finish in time", f"{deadline} s", next="again: what is whole is kept; fetch_deadline"
            )
            return {"ok": False, "error": late.error}
        chunk = os.read(reading, 65536)
        if not chunk:
            break
        text += chunk
    os.waitpid(child, 0)
    return json.loads(text) if text else {"ok": False, "error": Refused("fetch", "ended without an answer").error}


def main(argv):
    parser = argparse.ArgumentParser(prog="fetch")
    parser.add_argument("verb", choices=["resolve", "download"])
    parser.add_argument("--store", required=True)
    parser.add_argument("--within", type=int, default=14400)
    args = parser.parse_args(argv)
    os.umask(0o022)
    return print_answer(lambda: run(args, json.load(sys.stdin)), args.store)


def run(args, document):
    started, work = time.monotonic(), {"resolve": resolve, "download": download}[args.verb]
    unfinished = os.path.join(args.store, "fetch")
    os.makedirs(unfinished, exist_ok=True)
    with hold_lock(os.path.join(args.store, ".fetch.lock"), "is being fetched into"):
        # What an earlier run left unfinished does not resume (the client names it by process): away with it.
        for entry in os.scandir(unfinished):
            shutil.rmtree(entry.path)
        prepare(args.store, document)
        answer = within(args.within, lambda: work(args.store, document))
    return {**answer, "seconds": round(time.monotonic() - started, 2)}
