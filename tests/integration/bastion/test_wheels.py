"""The far side's wheels: every one that its Python needs, whatever Python the bastion has; by real pip, from a folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest

pytestmark = pytest.mark.integration
OTHER = "3.10" if sys.version_info[:2] != (3, 10) else "3.12"  # not the Python that pip runs on here


def wheel(folder, name, *needs):
    stem = f"{name}-1.0"
    words = "\n".join(
        ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {n}" for n in needs)]
    )
    words += "\nProvides-Extra: more\n"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{stem}.dist-info/METADATA", words)
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path):
    """A folder that pip takes packages from, in place of an index."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel(folder, "top", "middle[more]>=1", f'only_there; python_version == "{OTHER}"')
    wheel(folder, "middle", "bottom", 'with_more; extra == "more"', 'never; python_version < "3"')
    wheel(folder, "bottom")
    wheel(folder, "with_more", f'deep; python_full_version < "{OTHER}.2"')
    wheel(folder, "only_there")
    wheel(folder, "deep")
    return folder


def environment(index):
    return {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}


def get(host, index, ok=True, text="# ours\ntop==1.0  # pinned\n"):
    words = ("--for-python", OTHER, "--into", host.root / "wheels")
    return host.run("wheels", "get", *words, document=text, ok=ok, env=environment(index))


ALL = {"top", "middle", "bottom", "with_more", "only_there", "deep"}


def test_what_only_the_far_python_needs_comes_too(host, index):
    assert {name.split("-")[0] for name in get(host, index)["files"]} == ALL
    before = (host.root / "wheels").stat().st_mtime_ns
    assert {name.split("-")[0] for name in get(host, index)["files"]} == ALL
    assert (host.root / "wheels").stat().st_mtime_ns == before, "downloaded once"


def test_pip_alone_leaves_that_out(tmp_path, index):
    """Why wheels.py exists; where this turns red, it can go."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", tmp_path / "naive", "--only-binary=:all:"]
    command += ["--python-version", OTHER, "top==1.0"]
    subprocess.run(command, check=True, env=environment(index), capture_output=True)
    assert "only_there-1.0-py3-none-any.whl" not in os.listdir(tmp_path / "naive")


def test_a_package_that_nobody_has_is_named_and_nothing_half_is_kept(host, index):
    (index / "only_there-1.0-py3-none-any.whl").unlink()
    error = get(host, index, ok=False)["error"]
    assert error["where"] == "pip download" and "only" in error["found"]
    assert not (host.root / "wheels").exists()
    wheel(index, "only_there")
    assert {name.split("-")[0] for name in get(host, index)["files"]} == ALL
