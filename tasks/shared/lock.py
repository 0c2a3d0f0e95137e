"""The lock: every input of a release, and nothing else. Its canonical form's digest is the release id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.shared.errors import Refused
from tasks.shared.names import COMMIT, IMAGE, REPO, SHA256, check_path, check_paths, is_included

FORMAT = 1
LARGEST = 2**53  # bytes of one file: no disk is larger, and every JSON reader has the number exactly
ROLES = ("adapter", "base", "full")
# How a release reaches the service: the host's cache mounted, a layer of the image, or loaded by the host itself.
DELIVERIES = ("mount", "bake", "online")


@dataclass(frozen=True)
class File:
    """One file of a model repository: size in bytes, sha256, and the Hub's etag (git's sha1, or the sha256 of LFS)."""

    size: int
    sha256: str
    etag: str


@dataclass(frozen=True)
class Model:
    """One repository at one commit. `absent`: optional files that the Hub says it does not have."""

    repo: str
    role: str
    base: str | None
    commit: str
    files: Mapping[str, File]
    absent: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Its folder in a Hugging Face cache."""
        return "models--" + self.repo.replace("/", "--")


@dataclass(frozen=True)
class Blob:
    """One blob of the image: digest as 64 hex digits (sha256), and size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Image:
    """The backend image: what the stack calls it, and its manifest, config and layers."""

    name: str
    media_type: str
    manifest: Blob
    config: Blob
    layers: tuple[Blob, ...]

    @property
    def tag(self) -> str:
        """The name that this very image gets on a host: the stack's name and tag, made unique by its digest."""
        return _tagged(self.name, self.manifest.sha256[:12])

    @property
    def ids(self) -> tuple[str, str]:
        """Both ids that `docker image inspect` may show: the config (classic store) or the manifest (containerd's)."""
        return (f"sha256:{self.config.sha256}", f"sha256:{self.manifest.sha256}")


@dataclass(frozen=True)
class Lock:
    """A parsed lock. `asked`: {repository: revision} as the settings asked; a note that is no part of the id."""

    id: str
    models: tuple[Model, ...]
    image: Image
    serve: Mapping[str, Any]
    asked: Mapping[str, str]
    document: Mapping[str, Any]

    @property
    def served(self) -> Model:
        """The model that the service loads by name."""
        return next(m for m in self.models if m.repo == self.serve["model"])

    @property
    def short(self) -> str:
        """The first 12 hex digits of the release id, for people."""
        return self.id[:12]

    @property
    def delivery(self) -> str:
        return str(self.serve.get("delivery", "mount"))

    @property
    def tag(self) -> str:
        """The name of the service's image on a host: the backend's, or the one that has this release baked in."""
        return _tagged(self.image.name, f"baked-{self.short}") if self.delivery == "bake" else self.image.tag

    @property
    def volume(self) -> str:
        """The named volume of a release that a host loads itself. Each release has its own, so that a rollback finds it."""
        return f"hf-offline-{self.short}"

    def model_files(self) -> dict[str, int]:
        """The files of the model repositories, whoever brings them: {sha256: size in bytes}."""
        return {file.sha256: file.size for model in self.models for file in model.files.values()}

    def model_blobs(self) -> dict[str, int]:
        """The blobs of the models that the store carries: {sha256: size}. None where each host loads them itself."""
        return {} if self.delivery == "online" else self.model_files()

    def image_blobs(self) -> dict[str, int]:
        """The image's manifest, config and layers: {sha256: size in bytes}."""
        return {blob.sha256: blob.size for blob in (self.image.manifest, self.image.config, *self.image.layers)}

    def blobs(self) -> dict[str, int]:
        """Every blob of the release, model and image alike, once: {sha256: size in bytes}, sorted."""
        return dict(sorted({**self.model_blobs(), **self.image_blobs()}.items()))

    def summary(self) -> dict[str, Any]:
        """What the release is made of, by the names that people know: {"models": {repo: commit}, "image", "digest"}."""
        models = {model.repo: model.commit for model in self.models}
        return {"models": models, "image": self.image.name, "digest": f"sha256:{self.image.manifest.sha256}"}

    def describe_blob(self, sha256: str) -> str:
        """The files that a blob is, for messages: `owner/name: path`."""
        found = [f"{m.repo}: {path}" for m in self.models for path, f in m.files.items() if f.sha256 == sha256]
        image = {self.image.manifest.sha256: "manifest", self.image.config.sha256: "config"}
        image.update({layer.sha256: f"layer {i}" for i, layer in enumerate(self.image.layers)})
        if sha256 in image:
            found.append(f"{self.image.name}: {image[sha256]}")
        return ", ".join(found) or "no file of the release"

    def image_ids(self, baked: Mapping[str, Any] | None) -> tuple[str, ...]:
        """Every id that an engine may show for this release's image. `baked`: the host's own record of baking it, or None."""
        if self.delivery != "bake":
            return self.image.ids
        return tuple(str(baked.get(key)) for key in ("config", "manifest")) if baked else ()

    def is_mounted(self, store: str, mounts: Mapping[str, str | None], home: str) -> bool:
        """Whether a container with these mounts ({path inside: source}) reads this release's cache in `home`, and no other."""
        if any(where.startswith(f"{home}/") for where in mounts):
            return False  # a mount lies over a part of the cache
        if self.delivery == "bake":  # a mount of `home` or above it would hide the image's own cache
            return not any(home == where or home.startswith(f"{where.rstrip('/')}/") for where in mounts)
        source = mounts.get(home) or ""
        if self.delivery == "mount":
            return source == f"{store}/releases/{self.id}"
        return source.split("/")[-2:] == [self.volume, "_data"]

    def offline_environment(self, home: str) -> dict[str, str]:
        """The environment that makes a process read the cache in `home`, and never the network.

        It must be there before Python starts: libraries read it when they are imported.
        """
        return {
            "HF_HOME": home,
            "HF_HUB_CACHE": f"{home}/hub",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "DO_NOT_TRACK": "1",
            "MODEL_ID": self.served.repo,
            "MODEL_COMMIT": self.served.commit,
        }

    def costs(self) -> dict[str, dict[str, int]]:
        """What each delivery costs, in bytes: {delivery: {"image", "model_change", "code_change"}}.

        image: the weight of the service's image. model_change: what crosses to a host when the served repository changes
        and its base stays. code_change: the same when the last layer of the image changes.
        """
        image = sum(layer.size for layer in self.image.layers)
        model = sum(self.model_files().values())
        served = sum({f.sha256: f.size for f in self.served.files.values()}.values())
        code = self.image.layers[-1].size if self.image.layers else 0
        return {
            "mount": {"image": image, "model_change": served, "code_change": code},
            "bake": {"image": image + model, "model_change": served, "code_change": code},
            "online": {"image": image, "model_change": 0, "code_change": code},
        }


def _tagged(name: str, suffix: str) -> str:
    """`name:tag-suffix`, or `name:suffix` where the name has no tag."""
    stem, colon, tag = name.rpartition(":")
    return f"{stem}:{tag}-{suffix}" if colon else f"{tag}:{suffix}"


def canonical(document: Mapping[str, Any]) -> str:
    """The text that the release id is made from: the inputs alone. What was asked for (a branch) is a note."""
    inputs = {key: value for key, value in document.items() if key != "asked"}
    return json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def release_id(document: Mapping[str, Any]) -> str:
    """The id of the release that this document describes, 64 hex digits."""
    return hashlib.sha256(canonical(document).encode("ascii")).hexdigest()


def lock_text(document: Mapping[str, Any]) -> str:
    """The lock as it stands in git: keys sorted, indented, one newline at the end."""
    return json.dumps(document, sort_keys=True, indent=1, ensure_ascii=True) + "\n"


def parse_lock(text: str, where: str = "lock") -> Lock:
    """The lock in `text`, with every field checked. Raise Refused for the first that is wrong; nothing is guessed."""
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
    lock = Lock(release_id(document), models, _image(document["image"], where), serve, asked, document)
    _check_sizes(lock, where)
    return lock


def _check_sizes(lock: Lock, where: str) -> None:
    """One digest has one size. Raise Refused where two files disagree."""
    sizes: dict[str, int] = {}
    entries: list[File | Blob] = [lock.image.manifest, lock.image.config, *lock.image.layers]
    if lock.delivery != "online":
        entries += [file for model in lock.models for file in model.files.values()]
    for entry in entries:
        known = sizes.setdefault(entry.sha256, entry.size)
        _expect(f"{where}: {entry.sha256}", entry.size, known == entry.size, f"size {known}")


def _model(entry: Mapping[str, Any], where: str) -> Model:
    files = {}
    for path in check_paths(entry["files"]):
        spec = entry["files"][path]
        _expect(f"{where}: {path!a}", path, is_included(path), "a file that a release takes")
        _expect(f"{where}: {path}", spec, _is_size(spec["size"], 0), "a size in bytes")
        _expect(f"{where}: {path}", spec["sha256"], bool(SHA256.fullmatch(spec["sha256"])), "a sha256")
        lfs = spec["etag"] == spec["sha256"]
        _expect(f"{where}: {path}", spec["etag"], lfs or bool(COMMIT.fullmatch(spec["etag"])), "an etag of the Hub")
        files[path] = File(spec["size"], spec["sha256"], spec["etag"])
    _expect(where, entry["repo"], bool(REPO.fullmatch(entry["repo"])), "owner/name")
    _expect(where, entry["role"], entry["role"] in ROLES, f"one of {ROLES}")
    _expect(where, entry["commit"], bool(COMMIT.fullmatch(entry["commit"])), "a 40-hex commit")
    absent = tuple(check_paths(entry["absent"]))
    both = set(absent) & set(files)
    _expect(where, sorted(both), not both, "no name both present and absent")
    return Model(entry["repo"], entry["role"], entry["base"], entry["commit"], files, absent)


def _image(entry: Mapping[str, Any], where: str) -> Image:
    def blob(spec: Mapping[str, Any]) -> Blob:
        digest = spec["digest"]
        _expect(f"{where}: image", digest, digest[:7] == "sha256:" and bool(SHA256.fullmatch(digest[7:])), "sha256:…")
        _expect(f"{where}: image", spec["size"], _is_size(spec["size"], 1), "a size in bytes")
        return Blob(digest[7:], spec["size"])

    _expect(f"{where}: image.name", entry["name"], bool(IMAGE.fullmatch(entry["name"])), "an image name with a tag")
    layers = tuple(blob(spec) for spec in entry["layers"])
    return Image(entry["name"], entry["media_type"], blob(entry["manifest"]), blob(entry["config"]), layers)


def _is_size(found: Any, at_least: int) -> bool:
    return type(found) is int and at_least <= found <= LARGEST


def _expect(where: str, found: Any, fine: bool, expected: str) -> None:
    if not fine:
        raise Refused(where, "is not as it must be", expected, ascii(found), "tasks/lock.py")
