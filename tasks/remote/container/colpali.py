"""The smoke test of ColPali and its kind: loads the model in three ways, examines what it embeds, compares with the goldens."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.remote.container.embedding import Embedded, cosines, embed, maxsim, pack_all, unpack_all
from tasks.remote.container.families import base_alone, by_commit, by_name, load_processor
from tasks.remote.container.goldens import check_release, judge, read_goldens, width_faults
from tasks.remote.container.inputs import PAGES, QUERIES, inputs_sha256, pages
from tasks.remote.container.options import Floors, Options
from tasks.remote.container.report import Checks, Comparison, Embeddings, Measured
from tasks.shared.lock import Lock

# Lowest cosines, by how far this run's device and dtype are from the goldens'. The setting `tolerance` replaces them.
SAME, OTHER_DEVICE, OTHER_DTYPE = Floors(0.9999, 0.999), Floors(0.999, 0.99), Floors(0.998, 0.98)
CACHES = ("/root/.cache/huggingface/hub", "~/.cache/huggingface/hub")


@dataclass(frozen=True)
class Bench:
    """What all embeddings of this run share. options: arguments for `from_pretrained`.

    root: the release's cache. foreign: what `foreign_files` has found so far.
    """

    lock: Lock
    device: str
    images: Sequence[Any]
    options: Mapping[str, Any]
    root: str
    foreign: set[str] = field(default_factory=set)

    def embed(self, model: Any, processor: Any) -> Embedded:
        """Embed the fixed inputs. Note foreign files, too: the model's files are mapped only while it is loaded."""
        self.foreign.update(foreign_files(self.root))
        return embed(model, processor, self.images, self.device)


def run(options: Options, lock: Lock, checks: Checks) -> Measured | None:
    """Load and embed, and add to `checks`. None if there is no device to load it on."""
    import torch

    root = os.environ["HF_HOME"]
    check_offline(checks, root)
    device = choose_device(options.device, checks)
    if device is None:
        return None
    bench = Bench(lock, device, pages(), loading_options(lock, device), root)
    torch.manual_seed(0)  # keys that the weights lack get random values: the same ones in each run
    started = time.monotonic()
    model, processor = by_name(lock, bench.options)
    load_seconds = time.monotonic() - started
    check_image_processor(checks, lock, processor)
    ours = bench.embed(model, processor)
    examine(checks, ours.vectors, bench.embed(model, processor).vectors)
    del model  # memory holds only one copy of a large model
    check_weights(checks, bench, processor, ours.vectors)
    checks.add("every file read lies in the release", not bench.foreign, ", ".join(sorted(bench.foreign)[:4]))
    embeddings = Embeddings(
        f"{device}/{lock.serve['dtype']}", list(QUERIES), inputs_sha256(bench.images), pack_all(ours.vectors)
    )
    comparison = compare(options, lock, checks, ours.vectors, embeddings) if options.goldens else None
    return measured(bench, load_seconds, ours, embeddings, comparison, processor)


def check_offline(checks: Checks, root: str) -> None:
    """The client must be offline, and read the release's cache."""
    from huggingface_hub import constants

    fine = constants.HF_HUB_OFFLINE and os.path.join(root, "hub") == constants.HF_HUB_CACHE
    found = f"HF_HUB_OFFLINE={constants.HF_HUB_OFFLINE}, cache {constants.HF_HUB_CACHE}"
    checks.add("offline mode is on", fine, found)


def choose_device(asked: str, checks: Checks) -> str | None:
    """ "cpu" or "cuda". None if CUDA was asked for and is missing."""
    import torch

    has_cuda = torch.cuda.is_available()
    if asked == "auto":
        return "cuda" if has_cuda else "cpu"
    if asked == "cuda" and not has_cuda:
        found = "none in this container: driver, nvidia-container-toolkit, `gpus`"
        checks.add("a CUDA device is visible", False, found)
        return None
    return asked


def loading_options(lock: Lock, device: str) -> dict[str, Any]:
    """The arguments for `from_pretrained` that the release asks for."""
    import torch

    options = {"dtype": getattr(torch, lock.serve["dtype"]), "attn_implementation": lock.serve["attention"]}
    if device == "cuda":
        # With `.to("cuda")` instead, loading fails: the unused, tied lm_head stays on the meta device and cannot be moved.
        options["device_map"] = "cuda"
    return options


def check_image_processor(checks: Checks, lock: Lock, processor: Any) -> None:
    """The image processor must be of the backend that the release asks for.

    If that backend is missing, transformers only warns and uses another one.
    """
    asked = lock.serve.get("image_processor")
    if asked:
        backend = getattr(processor.image_processor, "backend", "unknown")
        found = f"{type(processor.image_processor).__name__} ({backend})"
        checks.add(f"the image processor is {asked}'s", backend == asked, found)


def examine(checks: Checks, ours: Mapping[str, Any], again: Mapping[str, Any]) -> None:
    """Add the checks that need no goldens. `again`: the vectors of a second forward."""
    import torch

    faults = width_faults({name: tuple(v.shape) for name, v in ours.items()})
    checks.add("all vectors have one width", not faults, ", ".join(faults))
    if faults:
        return  # the rest would be about vectors that cannot be compared
    checks.add("every value is finite", all(torch.isfinite(v).all() for v in ours.values()))
    norms = torch.cat([v.norm(dim=1) for v in ours.values()])
    checks.add("vectors have unit norm", ((norms - 1).abs() < 0.01).all(), f"{norms.min():.4f} to {norms.max():.4f}")
    worst = cosines(ours, again)[0]
    checks.add("two forwards agree", worst > 0.99999, f"lowest cosine {worst:.7f}")
    page, other = ours["page0"], ours["page1"]
    if page.shape == other.shape:
        mean = mean_cosine({"page": page}, {"page": other})
        checks.add("pages differ from each other", mean < 0.9999, f"mean cosine {mean:.4f}")
    else:
        checks.add("pages differ from each other", True, "by their number of vectors")


def mean_cosine(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """The mean of the cosines of each vector with its counterpart."""
    found = cosines(ours, theirs)
    return sum(found) / len(found)


def check_weights(checks: Checks, bench: Bench, processor: Any, ours: Mapping[str, Any]) -> None:
    """The adapter must change the output, and the name must load the very commits of the lock, with every key."""
    odd: list[str] = []
    if bench.lock.served.role == "adapter":
        base, odd = base_alone(bench.lock, bench.options)
        off = bench.embed(base, processor).vectors
        del base
        change = 1 - mean_cosine(ours, off)
        checks.add("the adapter changes the output", change > 1e-4, f"mean cosine distance on/off {change:.6f}")
    pinned, more = by_commit(bench.lock, bench.options)
    odd = [*odd, *more]
    checks.add("no key is missing or unexpected", not odd, ", ".join(odd[:6]))
    theirs = bench.embed(pinned, load_processor(bench.lock, revision=bench.lock.served.commit)).vectors
    worst = cosines(ours, theirs)[0]
    checks.add("by name and by commit are the same model", worst > 0.9999, f"lowest cosine {worst:.6f}")


def choose(ours: str, goldens: Collection[str]) -> tuple[str, Floors] | None:
    """Pick the nearest class of goldens, and its floors. None if there are no goldens."""
    if ours in goldens:
        return ours, SAME
    dtype = ours.partition("/")[2]
    same_dtype = [name for name in goldens if name.endswith(f"/{dtype}")]
    if same_dtype:
        return min(same_dtype), OTHER_DEVICE
    return (min(goldens), OTHER_DTYPE) if goldens else None


def compare(
    options: Options, lock: Lock, checks: Checks, ours: Mapping[str, Any], embeddings: Embeddings
) -> Comparison | None:
    """Compare with the goldens. None if they cannot be compared. `embeddings`: our vectors in the goldens' format."""
    goldens = read_goldens(str(options.goldens))
    check_release(checks, goldens, lock.id)
    chosen = choose(embeddings.device_class, goldens.classes)
    if chosen is None:
        checks.add("there are goldens to compare with", False, "none")
        return None
    name, floors = chosen
    golden = goldens.classes[name]
    same_inputs = golden["inputs_sha256"] == embeddings.inputs_sha256
    checks.add("goldens are of the same inputs", same_inputs, golden["inputs_sha256"][:12])
    theirs = unpack_all(golden["vectors"])
    same = {key: tuple(v.shape) for key, v in ours.items()} == {key: tuple(v.shape) for key, v in theirs.items()}
    checks.add("goldens have the same shape", same)
    if not same:
        return None
    floors = options.tolerance.get(embeddings.device_class, floors)
    comparison = judge(checks, name, cosines(ours, theirs), floors)
    our_order, their_order = page_order(ours), page_order(theirs)
    checks.add("MaxSim ranks pages as the goldens do", our_order == their_order, f"{our_order} against {their_order}")
    return comparison


def page_order(vectors: Mapping[str, Any]) -> list[list[int]]:
    """For each query the numbers of the pages, best first."""
    return [sorted(range(PAGES), key=row.__getitem__, reverse=True) for row in maxsim(vectors)]


def foreign_files(root: str) -> set[str]:
    """Weights mapped now from outside the release, and non-empty caches of the image.

    The weights are paths of .safetensors files. The caches are directories, each with a note behind its path. A model on
    a GPU, or one whose dtype was changed by loading, has copies of its weights and no mapped file.
    """
    weights = {path for path in mapped_files() if path.endswith(".safetensors") and not lies_in(root, path)}
    caches = [os.path.expanduser(cache) for cache in CACHES]
    others = [cache for cache in caches if os.path.isdir(cache) and not lies_in(root, cache) and os.listdir(cache)]
    return weights | {f"{cache} (another cache in the image)" for cache in others}


def mapped_files() -> set[str]:
    """The files that this process has mapped into its memory."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        # Address, permissions, offset, device, inode; and for a file its path, which may have spaces.
        rows = [line.rstrip("\n").split(maxsplit=5) for line in file]
    return {row[5] for row in rows if len(row) == 6}


def lies_in(root: str, path: str) -> bool:
    """Whether `path` is below the directory `root`, with all links followed."""
    return os.path.realpath(path).startswith(os.path.realpath(root) + os.sep)


def measured(
    bench: Bench,
    load_seconds: float,
    ours: Embedded,
    embeddings: Embeddings,
    comparison: Comparison | None,
    processor: Any,
) -> Measured:
    """Collect the results of this run."""
    import torch

    more = {
        "attention": bench.lock.serve["attention"],
        "image_processor": type(processor.image_processor).__name__,
        "peak_memory_bytes": peak_memory(bench.device),
        "versions": versions(),
        "scores": [[round(score, 4) for score in row] for row in maxsim(ours.vectors)],
    }
    device = torch.cuda.get_device_name() if bench.device == "cuda" else "cpu"
    dtype = str(bench.lock.serve["dtype"])
    return Measured(device, dtype, load_seconds, ours.latency_ms, embeddings, comparison, more)


def peak_memory(device: str) -> int:
    """The most bytes that were in use: of the GPU, or of this process."""
    import resource

    import torch

    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def versions() -> dict[str, str]:
    """{package: version} of what embeds, as far as it is installed, and of Python."""
    from importlib.metadata import version

    found = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "peft", "colpali-engine", "huggingface_hub", "safetensors"):
        with contextlib.suppress(Exception):
            found[name] = version(name)
    return found
