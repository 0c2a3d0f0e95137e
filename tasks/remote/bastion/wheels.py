"""The far side's Python packages: every wheel that a list of requirements needs, for another Python than this one.

    wheels get --store S --for-python 3.11 --into DIR --within SEC   (stdin: requirements.txt)

Runs in fetch's venv, for its pip and `packaging`. `pip download --python-version` judges markers by the Python that it
runs on: a bastion with 3.13 would leave out what only 3.10 needs, and nobody can mend that where no wire goes. So the
wheels' own words are read afterwards, and what they lack is brought as well. One JSON line on standard output.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser

from tasks.remote.common.files import hold_lock, print_answer, write_file
from tasks.shared.errors import Refused

ROUNDS = 10  # of reading what is there and bringing what that names; two are usual


def canonical(name):
    from packaging.utils import canonicalize_name

    return canonicalize_name(name)


def needs(text, version, extras):
    """The requirements of one package's METADATA on Python `version` (as 3.10), with these extras asked of it."""
    from packaging.requirements import Requirement

    found = []
    for line in Parser().parsestr(text, headersonly=True).get_all("Requires-Dist") or []:
        requirement = Requirement(line)
        # A patch release is not known: what any of them needs comes.
        worlds = [
            {"python_version": version, "python_full_version": f"{version}.{patch}", "extra": extra}
            for patch in (0, 99)
            for extra in extras
        ]
        if requirement.marker is None or any(requirement.marker.evaluate(world) for world in worlds):
            requirement.marker = None
            found.append(requirement)
    return found


def lacking(texts, top, version):
    """The requirements that no wheel answers, from those of `top` on down; `texts` is {canonical name: METADATA}."""
    asked, lacks, queue = {}, {}, list(top)
    while queue:
        requirement = queue.pop()
        name = canonical(requirement.name)
        extras = {"", *requirement.extras} - asked.get(name, set())
        if name not in texts:
            lacks[name] = str(requirement)
        elif extras:
            asked.setdefault(name, set()).update(extras)
            queue += needs(texts[name], version, extras)
    return sorted(lacks.values())


def metadata(folder):
    """{canonical name: METADATA} of the wheels in a directory."""
    found = {}
    for name in os.listdir(folder):
        if name.endswith(".whl"):
            with zipfile.ZipFile(os.path.join(folder, name)) as wheel:
                inside = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA") and n.count("/") == 1)
                found[canonical(name.split("-")[0])] = wheel.read(inside).decode("utf-8", "replace")
    return found


def download(folder, version, within, *words):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", folder]
    command += ["--only-binary=:all:", "--python-version", version, *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=within)
    except subprocess.TimeoutExpired:
        raise Refused("pip download", f"took longer than {within} s", next="look at the network") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "WARNING" not in line][-3:]
        raise Refused("pip download", "failed", "every wheel", "; ".join(said), "pip's settings there; bundle_python")


def get(args, text):
    from packaging.requirements import Requirement

    if os.path.isdir(args.into):
        return told(args.into)
    staged = f"{args.into}.new"
    shutil.rmtree(staged, ignore_errors=True)
    os.makedirs(staged)
    path = os.path.join(staged, "requirements.txt")
    write_file(path, text)
    download(staged, args.for_python, args.within, "-r", path)
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    top = [Requirement(line) for line in lines if line]
    for _ in range(ROUNDS):
        lacks = lacking(metadata(staged), top, args.for_python)
        if not lacks:
            os.unlink(path)
            os.rename(staged, args.into)
            return told(args.into)
        download(staged, args.for_python, args.within, "--no-deps", *lacks)
    raise Refused("pip download", "never had every wheel", "a closed set", ", ".join(lacks), "pip's settings there")


def told(folder):
    sizes = {name: os.path.getsize(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}
    return {"files": sizes, "bytes": sum(sizes.values())}


def main(argv):
    parser = argparse.ArgumentParser(prog="wheels")
    parser.add_argument("verb", choices=["get"])
    for option in ("--store", "--for-python", "--into"):
        parser.add_argument(option, required=True)
    parser.add_argument("--within", type=int, default=900)
    args = parser.parse_args(argv)
    os.umask(0o022)
    return print_answer(lambda: run(args), args.store)


def run(args):
    with hold_lock(os.path.join(args.store, ".wheels.lock"), "is being filled with wheels", within=60):
        return get(args, sys.stdin.read())
