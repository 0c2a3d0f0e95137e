"""Looks at one host and says what is there: one JSON line, nothing is changed. Runs on a host that has nothing of ours.

Sent as text over ssh (a fact may not write), so it imports the standard library alone. What it cannot read it says as
null with a reason in "unreadable"; it never guesses. Whether what it sees is enough is decided by lib/fitness.py.

The argument is one JSON object: {"store", "stack", "project", "service", "egress": ["host:port", …], "signers", "bundle"}.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
import zlib

STAGED, CONFIRMED = "compose.override.yaml", "compose.confirmed.yaml"
STACK_FILES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")


def output(*command, timeout=20):
    """The program's standard output, or None where it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def parsed(text):
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None


def read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def record(text):
    """The JSON object in `text`, or None: what power cuts and people leave in a record is no reason not to look."""
    found = parsed(text)
    return found if isinstance(found, dict) else None


def digest(path):
    """sha256 of a small file, or None."""
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return None


def tools(directory):
    """The tools that are whole: one that a power cut or a full disk cut short is none, and is brought again."""
    found = []
    for name in sorted(sizes(directory) or {}):
        try:
            with zipfile.ZipFile(os.path.join(directory, name)) as packed:
                found += [name] if packed.testzip() is None else []
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError):
            continue
    return found


def mark(path):
    """A record that counts by being there, whatever is in it: its object, else {"why": what it says instead}."""
    if not os.path.lexists(path):
        return None
    text = read(path)
    return record(text) or {"why": f"{path} is not a record of ours: {(text or 'not readable')[:200]!a}"}


def existing(path):
    """The nearest directory at or above `path` that exists: what is free there is free for `path`."""
    while path and not os.path.isdir(path):
        path = os.path.dirname(path)
    return path or "/"


def filesystem(path):
    """Free bytes and inodes (null where the filesystem counts none), device and mount point of a path to be."""
    real = existing(path)
    stat = os.statvfs(real)
    mount = os.path.realpath(real)
    while not os.path.ismount(mount):
        mount = os.path.dirname(mount)
    return {
        "path": path,
        "exists": os.path.isdir(path),
        "free_bytes": stat.f_bavail * stat.f_frsize,
        "free_inodes": stat.f_favail if stat.f_files else None,
        "read_only": bool(stat.f_flag & os.ST_RDONLY),
        "device": os.stat(real).st_dev,
        "mount": mount,
    }


def docker():
    info = parsed(output("docker", "info", "--format", "{{json .}}")) if shutil.which("docker") else None
    if not info or not info.get("ServerVersion"):
        return None
    drivers = [pair[1] for pair in info.get("DriverStatus") or [] if pair[0] == "driver-type"]
    # Of the same answer: asking Compose itself starts two programs more.
    plugins = (info.get("ClientInfo") or {}).get("Plugins") or []
    return {
        "version": info["ServerVersion"],
        "root": filesystem(info["DockerRootDir"]),
        "containerd_store": any("containerd" in driver for driver in drivers),
        "runtimes": sorted(info.get("Runtimes") or {}),
        "compose": next((plugin.get("Version") for plugin in plugins if plugin.get("Name") == "compose"), None),
        "images": images(),
        "volumes": sorted((output("docker", "volume", "ls", "-q") or "").split()),
    }


def images():
    """{name:tag: id}; an id is the config's digest, or the manifest's with containerd's store."""
    lines = output("docker", "image", "ls", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}") or ""
    return dict(line.split() for line in lines.splitlines() if len(line.split()) == 2)


def gpus():
    """[{name, driver}], or None where no nvidia-smi answers."""
    query = "--query-gpu=name,driver_version"
    text = output("nvidia-smi", query, "--format=csv,noheader,nounits")
    if text is None:
        return None
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.count(",") == 1]
    return [{"name": name, "driver": driver} for name, driver in rows]


def reached(targets, within=2.0):
    """The targets ("name:port") that answer a TCP connection: on an air-gapped host there must be none."""
    found = []

    def reach(target):
        host, _, port = target.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=within).close()
            found.append(target)
        except (OSError, ValueError):
            pass

    # Daemon threads: a resolver without a network can take 20 s to say no, and that is no reason to wait.
    threads = [threading.Thread(target=reach, args=(target,), daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + within
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    return sorted(found)


def stack(directory, service, project=None):
    """The operator's stack: its file, the override beside it, its project, its services, the networks of `service`."""
    files = [name for name in STACK_FILES if os.path.isfile(os.path.join(directory, name))]
    if not files:
        return {"directory": directory, "files": []}
    stem, suffix = os.path.splitext(files[0])
    overrides = [f"{s}.override{x}" for s in ("compose", "docker-compose") for x in (".yml", ".yaml")]
    there = [name for name in overrides if os.path.exists(os.path.join(directory, name))]
    named = ["-p", project] if project else []
    config = output("docker", "compose", *named, "-f", os.path.join(directory, files[0]), "config", "--format", "json")
    config = record(config)
    return {
        "directory": directory,
        "files": files,
        "override": f"{stem}.override{suffix}",
        "overrides": {name: read(os.path.join(directory, name)) for name in there},
        "project": config.get("name") if config else project,
        "services": sorted(config.get("services") or {}) if config else None,
        "networks": wired(config, service) if config else {},
    }


def wired(config, service):
    """{network: [what the service is called on it]} as Compose would make it; {} where it has the host's, or another's."""
    asked = ((config.get("services") or {}).get(service) or {}).get("networks") or {}
    names = {key: ((config.get("networks") or {}).get(key) or {}).get("name") or key for key in asked}
    # The engine's own networks know no names.
    return {
        names[key]: []
        if names[key] in ("bridge", "host", "none")
        else sorted({service, *((about or {}).get("aliases") or [])})
        for key, about in asked.items()
    }


def container(project, service, store, networks):
    """The service's container: id, image, state, health, restarts, start, mounts, its process, what it has lost; None without one.

    `networks`: see `wired`.
    """
    labels = [f"label=com.docker.compose.project={project}", f"label=com.docker.compose.service={service}"]
    ids = output("docker", "ps", "-aq", "--no-trunc", "--filter", labels[0], "--filter", labels[1])
    found = parsed(output("docker", "inspect", *ids.split())) if ids else None
    found = [c for c in found or [] if c["Config"]["Labels"].get("com.docker.compose.oneoff") != "True"]
    if not found:
        return None
    state = found[0]["State"]
    return {
        "id": found[0]["Id"],
        "image": found[0]["Image"],
        "state": state["Status"],
        "health": (state.get("Health") or {}).get("Status"),
        "restarts": found[0]["RestartCount"],
        "since": state["StartedAt"],
        "release": (found[0]["Config"]["Labels"] or {}).get("hf-offline.release"),
        "process": process(state["Pid"]),
        "mounts": {m["Destination"]: m.get("Source") for m in found[0]["Mounts"]},
        "torn": torn(found[0], store, networks) if state["Status"] == "running" else [],
    }


def torn(found, store, networks):
    """What a running container is to have and has not: its networks and names, the release's directory that it has mounted."""
    words, has = [], found["NetworkSettings"]["Networks"] or {}
    for network, names in networks.items():
        if network not in has:
            words.append(f"is not on its network {network}")
        elif gone := sorted(set(names) - set(has[network].get("Aliases") or [])):
            words.append(f"is not called {', '.join(gone)} on its network {network}")
    lines = (line.split() for line in (read(f"/proc/{found['State']['Pid']}/mountinfo") or "").splitlines())
    roots = {line[4]: line[3] for line in lines}  # mount point in there -> path on its own filesystem
    for mount in found["Mounts"]:
        source, inside = mount.get("Source") or "", roots.get(mount["Destination"])
        ours = source.startswith(os.path.join(store, "releases", "")) and inside is not None
        # What was renamed has another name by now, and what was removed "//deleted" behind it.
        if ours and not inside.endswith("/releases/" + os.path.basename(source)):
            words.append(f"has mounted what is no longer {source}")
    return words


def process(pid):
    """The environment inside the service's process, or None where it does not run (or may not be read)."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            pairs = [entry.partition(b"=") for entry in file.read().split(b"\0") if pid]
    except OSError:
        return None
    return {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, _, value in pairs if key}


def number(found):
    return isinstance(found, (int, float)) and not isinstance(found, bool) and math.isfinite(found)


def verified(text):
    """{"at", "epoch", …}: when a release was hashed here, or None where that cannot be read."""
    found = record(text) or {}
    return found if isinstance(found.get("at"), str) and number(found.get("epoch")) else None


def smoke(text):
    """A smoke test's answer, or None where it is none of ours."""
    found = record(text) or {}
    rows = [found.get(key) for key in ("cosine", "latency_ms", "versions")]
    whole = all(row is None or isinstance(row, dict) for row in rows)
    numbers = [value for row in rows[:2] if isinstance(row, dict) for value in row.values() if value is not None]
    return found if found and whole and all(map(number, numbers)) and "outbound_attempts" in found else None


def signers(path):
    """[path, owner, mode] of the list of who may sign and of each directory above it; None without that file."""
    found = []
    while not found or found[-1][0] != "/":
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            return None
        except OSError:
            return [[path, -1, 0]]  # unknown, so nobody is to rely on it
        found.append([path, info.st_uid, info.st_mode])
        path = os.path.dirname(path)
    return found


def signatures(text):
    """{"lock": signature, "goldens": signature or null} that the host keeps of a release, or None."""
    kept = record(text)
    if not kept:
        return None
    return {name: entry.get("signature") if isinstance(entry, dict) else None for name, entry in kept.items()}


def held(path):
    """Whether a living process holds this lock file; nothing is written here."""
    try:
        with open(path, encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def lease(path):
    """Whose rollout holds this host, or None; {} where it is held and the note of it is gone. A note alone is none."""
    if not held(os.path.join(path, ".lease.lock")):
        return None
    return record(read(os.path.join(path, "lease.json"))) or {}


def since(path):
    """When the current release was confirmed: the journal's last word about it, or None."""
    for line in reversed((read(os.path.join(path, "journal.jsonl")) or "").splitlines()):
        entry = record(line) or {}
        if entry.get("step") == "confirm":
            return entry["time"] if isinstance(entry.get("time"), str) else None
    return None


def sizes(directory):
    """{name: size in bytes} of the regular files; {} where the directory is missing; None where it cannot be read."""
    try:
        with os.scandir(directory) as entries:
            return {e.name: e.stat(follow_symlinks=False).st_size for e in entries if e.is_file(follow_symlinks=False)}
    except FileNotFoundError:
        return {}
    except OSError:
        return None


def lost(root, blobs):
    """Files that a release's cache lacks, or has in another size, by its own lock; [] where that names none to look for.

    Blobs are hard links: what the store has under `blobs` may be gone from what the service has mounted, or be another
    file there.
    """
    lock, found = record(read(os.path.join(root, "lock.json"))) or {}, []
    try:
        for model in lock["models"] if lock["serve"].get("delivery") != "online" else []:
            top = os.path.join(root, "hub", "models--" + model["repo"].replace("/", "--"))
            commit, files = model["commit"], model["files"].items()
            wanted = {os.path.join("snapshots", commit, name): (f["size"], f["sha256"]) for name, f in files}
            for name, (size, sha256) in {**wanted, "refs/main": (len(commit), "no blob's")}.items():
                path, blob = os.path.join(top, name), os.path.join(blobs, sha256)
                try:
                    whole = os.path.isfile(path) and os.path.getsize(path) == size
                    whole = whole and (not os.path.exists(blob) or os.path.samefile(path, blob))
                except OSError:  # it went in between
                    whole = False
                if not whole:
                    found.append(f"{model['repo']}/{name}")
    except (KeyError, TypeError, AttributeError):
        return []  # a lock that nobody can read is told as that
    return sorted(found)


def bundle(path):
    """The directory of a bundle: its filesystem, its parts' sizes, and which release bundle.json, written last, names."""
    about = record(read(os.path.join(path, "bundle.json"))) or {}
    return {**filesystem(path), "parts": sizes(os.path.join(path, "parts")), "release": about.get("release")}


def store(path):
    releases, states, blobs = (os.path.join(path, name) for name in ("releases", "state", "blobs"))
    try:
        built = sorted(n for n in os.listdir(releases) if len(n) == 64) if os.path.isdir(releases) else []
    except OSError:
        built = None
    about = {}
    for name in os.listdir(states) if os.path.isdir(states) else []:
        folder = os.path.join(states, name)
        if os.path.isdir(folder):
            names = ("verified-at", "smoke.json", STAGED, CONFIRMED, "baked.json", "signed.json")
            texts = {n: read(os.path.join(folder, n)) for n in names}
            about[name] = {
                "verified": verified(texts["verified-at"]),
                "smoke": smoke(texts["smoke.json"]),
                # What is there is to be tested, is being tested, or did not pass, after what the rest tells of.
                "candidate": os.path.isdir(os.path.join(folder, "candidate")),
                "override": texts[STAGED],
                "confirmed": texts[CONFIRMED],
                "baked": record(texts["baked.json"]),
                "signed": signatures(texts["signed.json"]),
                "goldens": digest(os.path.join(folder, "goldens.json")),
            }
    current = (read(os.path.join(path, "current")) or "").strip() or None
    return {
        "blobs": sizes(blobs),
        "lost": {name: found for name in built or [] if (found := lost(os.path.join(releases, name), blobs))},
        "incoming": sizes(os.path.join(path, "incoming")),
        "fetching": sizes(os.path.join(path, "fetch")),
        "releases": built,
        "states": about,
        "locks": {name: read(os.path.join(releases, name, "lock.json")) for name in built or []},
        "lease": lease(path),
        "recreate": os.path.exists(os.path.join(states, "recreate")),
        "pending": mark(os.path.join(states, "pending")),
        "away": mark(os.path.join(states, "not-readmitted")),
        "switching": held(os.path.join(path, ".switch.lock")),
        "since": since(path),
        "current": current,
        "previous": (read(os.path.join(path, "previous")) or "").strip() or None,
        "frozen": mark(os.path.join(states, "frozen")),
        "tools": tools(os.path.join(path, "tool")),
        "mounted": os.path.ismount(path),
        "devices": sorted(
            {os.stat(os.path.join(path, n)).st_dev for n in os.listdir(path) if os.path.isdir(os.path.join(path, n))}
        )
        if os.path.isdir(path)
        else [],
    }


def look(ask):
    rrsync = shutil.which("rrsync")
    seen = {
        "python": list(sys.version_info[:3]),
        "clock": time.time(),
        "user": os.geteuid(),
        "cores": os.cpu_count(),
        "rsync": (output("rsync", "--version") or "").splitlines()[:1],
        "rrsync": rrsync,
        "push_user": output("id", "-u", ask["push_user"]) if ask.get("push_user") else None,
        "docker": docker(),
        "gpus": gpus(),
        "skopeo": output("skopeo", "--version"),
        "ssh_keygen": shutil.which("ssh-keygen"),
        "signers": signers(ask["signers"]) if ask.get("signers") else None,
        "venv": importlib.util.find_spec("ensurepip") is not None,
        "store_filesystem": filesystem(ask["store"]),
        "store": store(ask["store"]),
        "egress": reached(ask.get("egress") or []),
    }
    if ask.get("bundle"):
        seen["bundle"] = bundle(ask["bundle"])
    if ask.get("stack"):
        seen["stack"] = stack(ask["stack"], ask["service"], ask.get("project"))
        project, networks = (seen["stack"].get(key) for key in ("project", "networks"))
        known = project and seen["docker"]
        seen["container"] = container(project, ask["service"], ask["store"], networks) if known else None
    return seen


def moment(path):
    """What a switch changes first and last."""
    state = os.path.join(path, "state")
    return read(os.path.join(path, "current")), [read(os.path.join(state, name)) for name in ("pending", "frozen")]


def main(argv):
    ask = json.loads(argv[0])
    for _ in range(3):  # what a switch changed meanwhile is half old and half new: look again
        before, seen = moment(ask["store"]), look(ask)
        if moment(ask["store"]) == before:
            break
    # Begun on a line of its own: a shell's start-up file may have said something, without ending its line.
    print("\n" + json.dumps(seen, ensure_ascii=True, sort_keys=True), flush=True)
    os._exit(0)  # not waiting for a resolver that still asks


if __name__ == "__main__":
    main(sys.argv[1:])
