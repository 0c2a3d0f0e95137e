"""What a release is: the lock, its checks, its names and paths, and the differences between sets of blobs.

Pure: no files, no clock, no network, no pyinfra. It travels with the remote programs, so that a lock is read, and a
name that came from a Hub is judged, by this one piece of code on every machine. Runs on Python 3.9.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import stat
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

FORMAT = 1
SHA256 = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")
REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
IMAGE = re.compile(r"[a-z0-9][a-z0-9._/:-]{0,200}")
ROLES = ("adapter", "base", "full")
# How a release reaches the service: the host's cache mounted, a layer of the image, or loaded by the host itself.
DELIVERIES = ("mount", "bake", "online")
# Who may sign, by ssh-keygen's ALLOWED SIGNERS. No setting: who could change the path could point it at nothing.
SIGNERS = "/etc/hf-offline/allowed_signers"
NAMESPACE = "hf-offline"
# Compose's variable for where the goldens of a smoke test are that has yet to pass.
CANDIDATE = "HF_OFFLINE_CANDIDATE"

# Weights as safetensors and plain data only: a pickle or a .py file is code that would run on a GPU host.
TAKEN = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
# fnmatch's `*` crosses `/`, so training leftovers are named as whole folders.
LEFT_OUT = ("checkpoint-*/*", "results*.json", "trainer_state.json", "training_args.json", "runs/*", ".*")
# Names that transformers and colpali-engine ask for and can do without, once the cache says that the Hub lacks them.
OPTIONAL_NAMES = (
    "adapter_config.json",
    "added_tokens.json",
    "audio_tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)


def last_object(lines: Sequence[str], key: str) -> dict[str, Any] | None:
    """The last line that is a JSON object with `key`: what a shell says when it starts or ends is no answer."""
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            if isinstance(found := json.loads(line), dict) and key in found:
                return found
    return None


class Refused(Exception):
    """A clear no: where, what, expected and found, and the command to run next. Never a traceback for the operator."""

    def __init__(self, where: str, what: str, expected: str = "", found: str = "", next: str = ""):
        self.error = {"where": where, "what": what, "expected": expected, "found": found, "next": next}
        super().__init__(say(self.error))


def say(error: Mapping[str, str]) -> str:
    """One line for people from an error of a remote program (`where: what; expected …, found …. Run: …`)."""
    text = f"{error.get('where', '')}: {error.get('what', '')}"
    if error.get("expected"):
        text += f"; expected {error['expected']}"
    if error.get("found"):
        text += f", found {error['found']}"
    text += f". Next: {error['next']}" if error.get("next") else ""
    # The words may be a container's or a Hub's, of many lines: nothing in them may steer a terminal.
    lines = "; ".join(filter(None, map(str.strip, text.splitlines())))
    return "".join(c if c.isprintable() else "?" for c in lines)


# ---------------------------------------------------------------------------------------------------- who may sign


def sign_command(*paths: str) -> str:
    """The command that signs files; it writes PATH.sig beside each."""
    return f"ssh-keygen -Y sign -n {NAMESPACE} -f KEY {' '.join(paths)}"


def loose(parts: Iterable[tuple[str, int, int]]) -> str:
    """ "" or who else than root can change a file: (path, owner, mode) of it and then of each directory above it.

    A sticky directory (/tmp) is no way in: what is root's there, nobody else renames.
    """
    for number, (path, owner, mode) in enumerate(parts):
        plain = stat.S_ISDIR(mode) if number else stat.S_ISREG(mode)
        sticky = number and mode & stat.S_ISVTX
        if not plain or owner != 0 or (mode & 0o022 and not sticky):
            return f"{path} of uid {owner}, {stat.filemode(mode)}"
    return ""


# ---------------------------------------------------------------------------------------------- names from a Hub


def check_path(path: str) -> str:
    """`path` if it is safe as a file name below a directory of ours; else Refused, with the name escaped."""
    parts = path.split("/") if isinstance(path, str) else []
    unsafe = (
        not parts
        or len(path.encode("utf-8", "surrogatepass")) > 255
        or any(part in ("", ".", "..") or part.startswith("-") for part in parts)
        or any(ord(c) < 32 or ord(c) == 127 or c == "\\" or 0xD800 <= ord(c) <= 0xDFFF for c in path)
        or unicodedata.normalize("NFC", path) != path
    )
    if unsafe:
        raise Refused(ascii(path), "is no safe file name", "a relative path without .., -, control or odd characters")
    return path


def check_paths(paths: Iterable[str]) -> list[str]:
    """The sorted paths if each is safe and no two clash (upper and lower case, a file that is also a folder)."""
    seen: dict[str, str] = {}
    ordered = sorted(check_path(path) for path in paths)
    for path in ordered:
        twin = seen.setdefault(path.casefold(), path)
        if twin != path:
            raise Refused(ascii(path), "clashes with another file of the repository", "one spelling", ascii(twin))
    for path in ordered:
        parent = path.rpartition("/")[0]
        while parent:
            if parent.casefold() in seen:
                raise Refused(ascii(path), "lies below a name that is also a file", "a folder", ascii(parent))
            parent = parent.rpartition("/")[0]
    return ordered


def taken(path: str) -> bool:
    """Whether a release takes this file of a repository: weights as safetensors, configuration, tokenizer; no code."""
    return any(fnmatchcase(path, p) for p in TAKEN) and not any(fnmatchcase(path, p) for p in LEFT_OUT)


def check_config(where: str, config: Any) -> None:
    """Refuse a config that names code to be imported (`auto_map`): it would run on every GPU host."""
    if isinstance(config, Mapping) and config.get("auto_map"):
        raise Refused(where, "names Python code to import (auto_map)", "a model that transformers knows", "auto_map")


def base_of(where: str, adapter_config: Mapping[str, Any]) -> str:
    """The repository of the base model that an adapter_config.json names; a local path is refused."""
    base = adapter_config.get("base_model_name_or_path")
    if not isinstance(base, str) or not REPO.fullmatch(base):
        raise Refused(where, "base_model_name_or_path names no Hub repository", "owner/name", ascii(base))
    return base


def absent(paths: Iterable[str]) -> list[str]:
    """Optional names that the Hub's listing lacks: each becomes a marker, so that a load by name works offline."""
    return sorted(set(OPTIONAL_NAMES) - set(paths))


# ------------------------------------------------------------------------------------------------------ the lock


@dataclass(frozen=True)
class File:
    """One file of a model repository: size in bytes, sha256, and the Hub's etag (git-sha1, or the sha256 of LFS)."""

    size: int
    sha256: str
    etag: str


@dataclass(frozen=True)
class Model:
    repo: str
    role: str
    base: str | None
    commit: str
    files: Mapping[str, File]
    absent: tuple[str, ...]

    @property
    def folder(self) -> str:
        return "models--" + self.repo.replace("/", "--")


@dataclass(frozen=True)
class Blob:
    """One blob of the image: digest as 64 hex (sha256) and size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Image:
    name: str
    media_type: str
    manifest: Blob
    config: Blob
    layers: tuple[Blob, ...]

    @property
    def tag(self) -> str:
        """The name that this very image gets on a host: the stack's name and tag, made unique by its digest."""
        name, colon, tag = self.name.rpartition(":")
        return f"{name}:{tag}-{self.manifest.sha256[:12]}" if colon else f"{tag}:{self.manifest.sha256[:12]}"

    @property
    def ids(self) -> tuple[str, str]:
        """What `docker image inspect` may call it: the config (classic store) or the manifest (containerd's)."""
        return (f"sha256:{self.config.sha256}", f"sha256:{self.manifest.sha256}")


@dataclass(frozen=True)
class Lock:
    id: str
    models: tuple[Model, ...]
    image: Image
    serve: Mapping[str, Any]
    asked: Mapping[str, str]
    document: Mapping[str, Any]

    @property
    def served(self) -> Model:
        return next(m for m in self.models if m.repo == self.serve["model"])

    @property
    def short(self) -> str:
        return self.id[:12]

    @property
    def delivery(self) -> str:
        return str(self.serve.get("delivery", "mount"))

    @property
    def tag(self) -> str:
        """What the service's image is called on a host: the backend's, or the one that has this release baked in."""
        if self.delivery != "bake":
            return self.image.tag
        name, colon, tag = self.image.name.rpartition(":")
        return f"{name}:{tag}-baked-{self.short}" if colon else f"{tag}:baked-{self.short}"

    @property
    def volume(self) -> str:
        """The named volume of a release that a host loads by itself; of each release its own, so that it goes back."""
        return f"hf-offline-{self.short}"


def canonical(document: Mapping[str, Any]) -> str:
    """The bytes that the release id is made from: the inputs alone; what was asked for (a branch) is a note."""
    inputs = {key: value for key, value in document.items() if key != "asked"}
    return json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def release_id(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(document).encode("ascii")).hexdigest()


def write(document: Mapping[str, Any]) -> str:
    """The lock as it stands in git: sorted, indented, one newline at the end."""
    return json.dumps(document, sort_keys=True, indent=1, ensure_ascii=True) + "\n"


def parse(text: str, where: str = "lock") -> Lock:
    """The lock in `text`, every field checked; Refused names the first that is wrong. Nothing is guessed."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(where, "is not JSON", "a lock", str(error), "tasks/lock.py") from None
    try:
        return _lock(document, where)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise Refused(where, f"is not a lock of format {FORMAT}", found=repr(error), next="tasks/lock.py") from None


def _lock(document: Any, where: str) -> Lock:
    _expect(where, document.get("format"), document.get("format") == FORMAT, f"format {FORMAT}")
    known = {"format", "asked", "models", "image", "serve"}
    _expect(where, sorted(set(document) - known), set(document) <= known, "no other keys")
    models = tuple(_model(entry, f"{where}: models[{i}]") for i, entry in enumerate(document["models"]))
    repos = [model.repo for model in models]
    _expect(where, repos, bool(repos) and len(set(repos)) == len(repos), "each model once")
    for model in models:
        if model.role == "adapter" and model.base not in repos:
            raise Refused(f"{where}: {model.repo}", "is an adapter whose base is not in the lock", str(model.base))
    serve, asked = document["serve"], document["asked"]
    _expect(f"{where}: asked", asked, isinstance(asked, Mapping), "the revision of each model")
    _expect(f"{where}: serve.model", serve["model"], serve["model"] in repos, f"one of {repos}")
    delivery = serve.get("delivery", "mount")
    _expect(f"{where}: serve.delivery", delivery, delivery in DELIVERIES, f"one of {DELIVERIES}")
    if delivery == "bake":
        _expect(f"{where}: serve.hf_home", serve["hf_home"], serve["hf_home"][:1] == "/", "an absolute path")
        check_path(serve["hf_home"][1:])
    sizes: dict[str, int] = {}
    lock = Lock(release_id(document), models, _image(document["image"], where), serve, asked, document)
    for sha256, size in _all_blobs(lock):
        _expect(f"{where}: {sha256}", size, sizes.setdefault(sha256, size) == size, f"size {sizes[sha256]}")
    return lock


def _model(entry: Mapping[str, Any], where: str) -> Model:
    files = {}
    for path in check_paths(entry["files"]):
        spec = entry["files"][path]
        _expect(f"{where}: {path!a}", path, taken(path), "a file that a release takes")
        _expect(f"{where}: {path}", spec, type(spec["size"]) is int and spec["size"] >= 0, "a size in bytes")
        _expect(f"{where}: {path}", spec["sha256"], bool(SHA256.fullmatch(spec["sha256"])), "a sha256")
        lfs = spec["etag"] == spec["sha256"]
        _expect(f"{where}: {path}", spec["etag"], lfs or bool(COMMIT.fullmatch(spec["etag"])), "an etag of the Hub")
        files[path] = File(spec["size"], spec["sha256"], spec["etag"])
    _expect(where, entry["repo"], bool(REPO.fullmatch(entry["repo"])), "owner/name")
    _expect(where, entry["role"], entry["role"] in ROLES, f"one of {ROLES}")
    _expect(where, entry["commit"], bool(COMMIT.fullmatch(entry["commit"])), "a 40-hex commit")
    missing_names = tuple(check_paths(entry["absent"]))
    both = set(missing_names) & set(files)
    _expect(where, sorted(both), not both, "no name both present and absent")
    return Model(entry["repo"], entry["role"], entry["base"], entry["commit"], files, missing_names)


def _image(entry: Mapping[str, Any], where: str) -> Image:
    def blob(spec: Mapping[str, Any]) -> Blob:
        digest = spec["digest"]
        _expect(f"{where}: image", digest, digest[:7] == "sha256:" and bool(SHA256.fullmatch(digest[7:])), "sha256:…")
        _expect(f"{where}: image", spec["size"], type(spec["size"]) is int and spec["size"] > 0, "a size in bytes")
        return Blob(digest[7:], spec["size"])

    _expect(f"{where}: image.name", entry["name"], bool(IMAGE.fullmatch(entry["name"])), "an image name with a tag")
    layers = tuple(blob(spec) for spec in entry["layers"])
    return Image(entry["name"], entry["media_type"], blob(entry["manifest"]), blob(entry["config"]), layers)


def _expect(where: str, found: Any, fine: bool, expected: str) -> None:
    if not fine:
        raise Refused(where, "is not as it must be", expected, ascii(found), "tasks/lock.py")


# ------------------------------------------------------------------------------------------- sets and differences


def _all_blobs(lock: Lock) -> Iterable[tuple[str, int]]:
    yield from model_blobs(lock).items()
    yield from image_blobs(lock).items()


def blobs(lock: Lock) -> dict[str, int]:
    """Every blob of the release, model and image alike, once: sha256 -> size in bytes."""
    return dict(sorted(_all_blobs(lock)))


def model_files(lock: Lock) -> dict[str, int]:
    """The files of the model repositories, whoever brings them: sha256 -> size in bytes."""
    return {file.sha256: file.size for model in lock.models for file in model.files.values()}


def model_blobs(lock: Lock) -> dict[str, int]:
    """The blobs of the model repositories alone: sha256 -> size in bytes; none where each host loads them itself."""
    return {} if lock.delivery == "online" else model_files(lock)


def image_blobs(lock: Lock) -> dict[str, int]:
    """The image's manifest, config and layers: sha256 -> size in bytes."""
    return {blob.sha256: blob.size for blob in (lock.image.manifest, lock.image.config, *lock.image.layers)}


# Files of a repository that cannot change an embedding.
BESIDE = ("generation_config.json", "README.md")


def contents(lock: Lock) -> dict[str, Any]:
    """What a release is made of, by the names that people know it by."""
    models = {model.repo: model.commit for model in lock.models}
    return {"models": models, "image": lock.image.name, "digest": f"sha256:{lock.image.manifest.sha256}"}


def space(lock: Lock) -> str:
    """The id of the embedding space, 12 hex: releases with the same id may answer one index.

    It is made from what decides a vector: the models' files (weights, tokenizer, processor), which one is served, how it
    is pooled (family), its dtype and, where one is chosen, its image processor; not from commits, so a commit that changes
    only a README is the same space.
    """
    files = {
        model.repo: {path: file.sha256 for path, file in model.files.items() if path not in BESIDE}
        for model in lock.models
    }
    decides = {"files": files, **{key: lock.serve.get(key) for key in ("model", "family", "dtype")}}
    if lock.serve.get("image_processor"):
        # Where torchvision lacks the model's own filter (ColSmol's Lanczos), a page's vectors move by more than rounding.
        decides["image_processor"] = lock.serve["image_processor"]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode("ascii")).hexdigest()[:12]


def missing(wanted: Mapping[str, int], have: Mapping[str, int]) -> dict[str, int]:
    """wanted − have, by digest *and* size: a blob of the wrong length is as good as none."""
    return {sha256: size for sha256, size in wanted.items() if have.get(sha256) != size}


def image_ids(lock: Lock, baked: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What an engine may call the image of this release; `baked`: a machine's own record (remote/bake.py), or None."""
    if lock.delivery != "bake":
        return lock.image.ids
    return tuple(str(baked.get(key)) for key in ("config", "manifest")) if baked else ()


def mounted_right(lock: Lock, store: str, mounts: Mapping[str, str | None], home: str) -> bool:
    """Whether a container with these mounts (where -> from what) reads this release's cache in `home`, and no other."""
    if any(where.startswith(f"{home}/") for where in mounts):
        return False  # something lies over a part of it
    if lock.delivery == "bake":  # a mount of a directory above would hide it
        return not any(home == where or home.startswith(f"{where.rstrip('/')}/") for where in mounts)
    source = mounts.get(home) or ""
    if lock.delivery == "mount":
        return source == f"{store}/releases/{lock.id}"
    return source.split("/")[-2:] == [lock.volume, "_data"]


def offline(lock: Lock, home: str) -> dict[str, str]:
    """What makes a process read the cache in `home` and never the network; it must be there before Python starts."""
    return {
        "HF_HOME": home,
        "HF_HUB_CACHE": f"{home}/hub",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DO_NOT_TRACK": "1",
        "MODEL_ID": lock.served.repo,
        "MODEL_COMMIT": lock.served.commit,
    }


def costs(lock: Lock) -> dict[str, dict[str, int]]:
    """What each delivery costs with these inputs, in bytes: {delivery: {"image", "model_change", "code_change"}}.

    image: what the service's image weighs. model_change: what crosses the air gap to a host when the served
    repository is another one (its base stays). code_change: the same when the image's last layer is another one.
    """
    image = sum(layer.size for layer in lock.image.layers)
    model, served = (
        sum(model_files(lock).values()),
        sum({f.sha256: f.size for f in lock.served.files.values()}.values()),
    )
    code = lock.image.layers[-1].size if lock.image.layers else 0
    return {
        "mount": {"image": image, "model_change": served, "code_change": code},
        "bake": {"image": image + model, "model_change": served, "code_change": code},
        "online": {"image": image, "model_change": 0, "code_change": code},
    }


def parts(blob: str, size: int, at_most: int) -> list[tuple[str, int, int]]:
    """[(name, offset, size)] of the files that a blob is in a bundle: itself, or pieces of `at_most` bytes in order."""
    if size <= at_most:
        return [(blob, 0, size)]
    offsets = range(0, size, at_most)
    return [(f"{blob}.{i:03d}", offset, min(at_most, size - offset)) for i, offset in enumerate(offsets)]


def names(lock: Lock, sha256: str) -> str:
    """What people call a blob: the files that it is (`owner/name: path`), for messages."""
    found = [f"{m.repo}: {path}" for m in lock.models for path, f in m.files.items() if f.sha256 == sha256]
    image = {lock.image.manifest.sha256: "manifest", lock.image.config.sha256: "config"}
    image.update({layer.sha256: f"layer {i}" for i, layer in enumerate(lock.image.layers)})
    found += [f"{lock.image.name}: {image[sha256]}"] if sha256 in image else []
    return ", ".join(found) or "no file of the release"


def git_sha1(data: bytes) -> str:
    """The Hub's etag of a small file: git's object id."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
