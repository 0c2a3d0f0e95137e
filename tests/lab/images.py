"""The lab's images, built once: a Debian base, the backend, the host. Cached by a hash of what they are made from."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SUITE = "trixie"
BASE, HOST = f"lab-debian:{SUITE}", "lab-host:latest"
BACKEND, LIGHT = "docai/backend:1.0", "docai/light:1.0"


def run(*command: object, stdin: str | None = None, quiet: bool = True, **more) -> str:
    """A command's standard output; on failure its last words, as an error that says which command it was."""
    words = [str(word) for word in command]
    done = subprocess.run(words, input=stdin, text=True, capture_output=quiet, **more)
    if done.returncode:
        said = ((done.stderr or "") + (done.stdout or "")).strip()[-2000:]
        raise SystemExit(f"lab: `{' '.join(words)[:200]}` failed with code {done.returncode}:\n{said}")
    return (done.stdout or "").strip()


def answers(*command: object) -> bool:
    return subprocess.run([str(word) for word in command], capture_output=True).returncode == 0


def built(image: str, recipe: str) -> bool:
    found = subprocess.run(
        ["docker", "image", "inspect", "-f", '{{index .Config.Labels "lab.recipe"}}', image],
        capture_output=True,
        text=True,
    )
    return found.returncode == 0 and found.stdout.strip() == recipe


def hashed(*parts: Path | str) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.read_bytes() if isinstance(part, Path) else part.encode())
    return sha.hexdigest()[:16]


def mirror() -> str:
    """The machine's own Debian mirror, for another suite: its deb822 sources, or its sources.list made into one."""
    for path in sorted(Path("/etc/apt/sources.list.d").glob("*.sources")):
        uris = [line.split()[1] for line in path.read_text().splitlines() if line.startswith("URIs:")]
        if uris and "debian" in uris[0]:
            return uris[0]
    classic = Path("/etc/apt/sources.list")
    for line in classic.read_text().splitlines() if classic.exists() else []:
        words = [word for word in line.split() if not word.startswith("[")]
        if words[:1] == ["deb"] and "debian" in words[1]:
            return words[1]
    return ""


def base() -> None:
    """A Debian base image: pulled where a registry answers, else made by debootstrap."""
    if answers("docker", "image", "inspect", BASE):
        return
    print(f"lab: base image {BASE}", flush=True)
    pulled = subprocess.run(["timeout", "60", "docker", "pull", f"debian:{SUITE}"], capture_output=True)
    if pulled.returncode == 0:
        run("docker", "tag", f"debian:{SUITE}", BASE)
        return
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        script = Path("/usr/share/debootstrap/scripts") / SUITE
        words = ["debootstrap", "--variant=minbase", SUITE, folder, *([mirror()] if mirror() else [])]
        run(*words, *([] if script.exists() else [script.with_name("sid")]))
        archive = subprocess.Popen(["tar", "-C", folder, "-c", "."], stdout=subprocess.PIPE)
        subprocess.run(["docker", "import", "-", BASE], stdin=archive.stdout, check=True, stdout=subprocess.DEVNULL)


def build(image: str, folder: Path, *more: Path) -> None:
    """`docker build` of a folder, with this machine's mirror, CA bundle and pip settings: corporate networks need them."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    base_id = run("docker", "image", "inspect", "-f", "{{.Id}}", BASE)
    recipe = hashed(base_id, *files, *more)
    if built(image, recipe):
        return
    print(f"lab: image {image}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        context = Path(name)
        for path in files:
            shutil.copy(path, context / path.name)
        for path in more:  # two may have the same name
            shutil.copy(path, context / "-".join(path.relative_to(ROOT).parts))
        bundle = Path(
            os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt"
        )
        shutil.copy(bundle, context / "ca.pem")
        (context / "pip.env").write_text(pip_settings())
        (context / "sources").mkdir()
        sources = f"Types: deb\nURIs: {mirror()}\nSuites: {SUITE}\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        (context / "sources" / "lab.sources").write_text(sources if mirror() else "")
        run("docker", "build", "--network", "host", "--label", f"lab.recipe={recipe}", "-t", image, context)


def pip_settings() -> str:
    """PIP_… of this machine for a build, as shell assignments; paths of this machine mean nothing there."""
    kept = []
    for line in subprocess.run(
        ["python3", "-m", "pip", "config", "list"], capture_output=True, text=True
    ).stdout.splitlines():
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        value = value.strip("'\"")
        if name in ("index-url", "extra-index-url", "trusted-host", "proxy") and "file:" not in value:
            kept.append(f"PIP_{name.upper().replace('-', '_')}='{value}'")
    return "\n".join([*kept, "PIP_DEFAULT_TIMEOUT=180", "PIP_DISABLE_PIP_VERSION_CHECK=1", ""])


def all_images() -> None:
    base()
    build(HOST, HERE / "host", ROOT / "tasks/remote/bastion/requirements.txt", ROOT / "requirements.txt")
    build(BACKEND, HERE / "backend")
    build(LIGHT, HERE / "light")
