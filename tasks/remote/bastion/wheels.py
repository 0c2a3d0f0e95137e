"""The far side's Python packages: every wheel that a list of requirements needs, for another Python than this one.

    wheels get --store S --for-python 3.11 --into DIR --within SEC   (stdin: requirements.txt)

The program runs in fetch's venv, for its pip and `packaging`. `pip download --python-version` judges markers by the Python
that it runs on. So a bastion with 3.13 leaves out what only 3.10 needs, and no wire brings that later. This program reads
what the wheels themselves ask for, and brings what is missing. The answer is one JSON line on standard output.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from email.parser import Parser
from typing import TYPE_CHECKING, Any

from tasks.remote.common.files import hold_lock, print_answer, write_file
from tasks.shared.errors import Refused

if TYPE_CHECKING:
    from packaging.requirements import Requirement

ROUNDS = 10  # of reading the wheels that are there and downloading what they name; two are usual


@dataclass(frozen=True)
class Options:
    """The command line. for_python: as 3.11. into: the directory of the wheels. within: seconds for one call of pip."""

    verb: str
    store: str
    for_python: str
    into: str
    within: int


def main(argv: Sequence[str]) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(prog="wheels")
    parser.add_argument("verb", choices=["get"])
    for option in ("--store", "--for-python", "--into"):
        parser.add_argument(option, required=True)
    parser.add_argument("--within", type=int, default=900)
    options = Options(**vars(parser.parse_args(argv)))
    os.umask(0o022)
    return print_answer(lambda: answer(options), options.store)


def answer(options: Options) -> dict[str, Any]:
    """{"files": {name: bytes}, "bytes"} of the wheels, which are downloaded once."""
    with hold_lock(os.path.join(options.store, ".wheels.lock"), "is being filled with wheels", within=60):
        if not os.path.isdir(options.into):
            get(options, sys.stdin.read())
    sizes = {name: os.path.getsize(os.path.join(options.into, name)) for name in sorted(os.listdir(options.into))}
    return {"files": sizes, "bytes": sum(sizes.values())}


def get(options: Options, text: str) -> None:
    """Download every wheel that the requirements in `text` need. The directory gets its name when none is missing."""
    from packaging.requirements import Requirement

    staged = f"{options.into}.new"
    shutil.rmtree(staged, ignore_errors=True)
    os.makedirs(staged)
    path = os.path.join(staged, "requirements.txt")
    write_file(path, text)
    download(options, staged, "-r", path)
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    wanted = [Requirement(line) for line in lines if line]
    missing: list[str] = []
    for _ in range(ROUNDS):
        missing = missing_requirements(metadata(staged), wanted, options.for_python)
        if not missing:
            os.unlink(path)
            os.rename(staged, options.into)
            return
        download(options, staged, "--no-deps", *missing)
    fix = "pip's settings there"
    raise Refused("pip download", "never had every wheel", "a closed set", ", ".join(missing), fix)


def download(options: Options, folder: str, *words: str) -> None:
    """Call `pip download` for the other Python. Raise Refused with the last lines that it says."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", folder]
    command += ["--only-binary=:all:", "--python-version", options.for_python, *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.within)
    except subprocess.TimeoutExpired:
        what = f"took longer than {options.within} s"
        raise Refused("pip download", what, next="look at the network") from None
    if done.returncode:
        said = "; ".join([line for line in done.stderr.splitlines() if "WARNING" not in line][-3:])
        raise Refused("pip download", "failed", "every wheel", said, "pip's settings there; bundle_python")


def metadata(folder: str) -> dict[str, str]:
    """{canonical name: text of METADATA} of the wheels in a directory."""
    found = {}
    for name in os.listdir(folder):
        if name.endswith(".whl"):
            with zipfile.ZipFile(os.path.join(folder, name)) as wheel:
                inside = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA") and n.count("/") == 1)
                found[canonical(name.split("-")[0])] = wheel.read(inside).decode("utf-8", "replace")
    return found


def missing_requirements(texts: Mapping[str, str], wanted: Iterable[Requirement], version: str) -> list[str]:
    """The requirements that no wheel answers, of `wanted` and of all that these need; sorted. `texts`: see `metadata`."""
    asked: dict[str, set[str]] = {}  # {canonical name: extras that were looked at}
    missing: dict[str, str] = {}
    queue = list(wanted)
    while queue:
        requirement = queue.pop()
        name = canonical(requirement.name)
        extras = {"", *requirement.extras} - asked.get(name, set())
        if name not in texts:
            missing[name] = str(requirement)
        elif extras:
            asked.setdefault(name, set()).update(extras)
            queue += needs(texts[name], version, extras)
    return sorted(missing.values())


def needs(text: str, version: str, extras: Set[str]) -> list[Requirement]:
    """The requirements in one METADATA text on Python `version` (as 3.10), with these extras; "" is none."""
    from packaging.requirements import Requirement

    found = []
    for line in Parser().parsestr(text, headersonly=True).get_all("Requires-Dist") or []:
        requirement = Requirement(line)
        # The far side's patch release is not known. So what the first or a late one needs is brought.
        worlds = [
            {"python_version": version, "python_full_version": f"{version}.{patch}", "extra": extra}
            for patch in (0, 99)
            for extra in extras
        ]
        if requirement.marker is None or any(requirement.marker.evaluate(world) for world in worlds):
            requirement.marker = None
            found.append(requirement)
    return found


def canonical(name: str) -> str:
    """A package's name as indexes spell it."""
    from packaging.utils import canonicalize_name

    return str(canonicalize_name(name))
