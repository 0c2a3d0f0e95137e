"""Embeds fixed pages and queries with ColPali or one of its kind, examines them, and compares with the goldens.

Part of the smoke program; this and families.py are all that needs colpali-engine and torch.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import sys
import time

from tasks.remote.container.families import base_alone, by_commit, by_name, load_processor

# Fixed inputs; a change of these makes every golden worthless, so they are part of "inputs_sha256".
QUERIES = (
    "what was the total revenue per quarter",
    "which page shows the red bar chart",
    "invoice number and date",
)
PAGES = 3
# Cosine floors (mean, 1st percentile) by class of this run and of the goldens (design, section 4; settings.tolerance
# overrides). Never the minimum: one token of a thousand may differ by rounding.
SAME, BF16_ACROSS, BF16_FP32 = (0.9999, 0.999), (0.999, 0.99), (0.998, 0.98)


def pages():
    """Three pages drawn by code: no fonts, no files, the same pixels everywhere. The last is tall, as paper is: families
    that take an image in its own proportions make another number of vectors of it."""
    from PIL import Image, ImageDraw

    made = []
    for number in range(PAGES):
        image = Image.new("RGB", (448, 632 if number == 2 else 448), (255, 255, 250 - 10 * number))
        draw = ImageDraw.Draw(image)
        for i in range(6 + number):
            x, height = 30 + 55 * i % 390, 40 + (i * 67 + number * 131) % 240
            colour = ((220, 30, 30), (30, 120, 40), (30, 60, 200))[(i * (number + 1)) % 3]
            if number == 1:
                draw.ellipse((x, 420 - height, x + 60, 480 - height), fill=colour)
            else:
                draw.rectangle((x, 430 - height, x + 30 + 6 * number, 430), fill=colour)
        for row in range(4 + 2 * number):
            draw.line(
                (20, 20 + 14 * row, 200 + (row * 53 + number * 29) % 220, 20 + 14 * row), fill=(20, 20, 20), width=3
            )
        made.append(image)
    return made


def inputs_sha256(images):
    sha = hashlib.sha256("\n".join(QUERIES).encode())
    for image in images:
        sha.update(image.tobytes())
    return sha.hexdigest()


# ------------------------------------------------------------------------------------------------------ embeddings


def embed(model, processor, images, device):
    """{name: (n, 128) float32 tensor of the unmasked tokens}, and the masks' complement; one input a forward."""
    import torch

    found, times = {}, {"page": [], "query": []}
    batches = [("page", i, lambda image=image: processor.process_images([image])) for i, image in enumerate(images)]
    batches += [("query", i, lambda text=text: processor.process_queries([text])) for i, text in enumerate(QUERIES)]
    for kind, number, make in batches:
        batch = make().to(device)
        started = time.monotonic()
        with torch.inference_mode():
            vectors = model(**batch)
        if device == "cuda":
            torch.cuda.synchronize()
        times[kind].append((time.monotonic() - started) * 1000)
        mask = batch["attention_mask"][0].bool()
        found[f"{kind}{number}"] = vectors[0][mask].float().cpu()
    return found, {kind: sorted(values)[len(values) // 2] for kind, values in times.items()}


def maxsim(vectors):
    """Scores (queries × pages): for each query token its best page token, summed (the late interaction of ColPali)."""
    count = range(len(QUERIES)), range(PAGES)
    return [
        [float((vectors[f"query{q}"] @ vectors[f"page{p}"].T).max(1).values.sum()) for p in count[1]] for q in count[0]
    ]


def cosines(ours, theirs):
    """Cosine of each token with its golden, over all pages and queries, sorted."""
    import torch

    every = [torch.nn.functional.cosine_similarity(ours[name], theirs[name], dim=1) for name in sorted(theirs)]
    return sorted(torch.cat(every).tolist())


def packed(vectors):
    return {
        name: {"shape": list(v.shape), "f16": base64.b64encode(v.half().numpy().tobytes()).decode("ascii")}
        for name, v in vectors.items()
    }


def unpacked(entries):
    import numpy
    import torch

    return {
        name: torch.from_numpy(
            numpy.frombuffer(base64.b64decode(e["f16"]), dtype="<f2").reshape(e["shape"]).astype("f4")
        )
        for name, e in entries.items()
    }


def choose(ours, goldens):
    """The golden class to compare with, nearest first, and its floors."""
    dtype = ours.partition("/")[2]
    ranked = [(ours, SAME)]
    ranked += [(name, BF16_ACROSS) for name in sorted(goldens) if name.endswith("/" + dtype) and name != ours]
    ranked += [(name, BF16_FP32) for name in sorted(goldens) if not name.endswith("/" + dtype)]
    return next((pair for pair in ranked if pair[0] in goldens), None)


# ------------------------------------------------------------------------------------------------------- the checks


def run(args, lock, checks):
    """Adds to `checks`; -> what else there is to tell (smoke.py has the fields)."""
    root = os.environ["HF_HOME"]
    import torch
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE and os.path.join(root, "hub") == constants.HF_HUB_CACHE
    checks.add(
        "offline mode is on", offline, f"HF_HUB_OFFLINE={constants.HF_HUB_OFFLINE}, cache {constants.HF_HUB_CACHE}"
    )
    device = {"auto": "cuda" if torch.cuda.is_available() else "cpu"}.get(args.device, args.device)
    if device == "cuda" and not torch.cuda.is_available():
        checks.add(
            "a CUDA device is visible", False, "none in this container: driver, nvidia-container-toolkit, `gpus`"
        )
        return {}
    torch.manual_seed(0)
    dtype, attention = lock.serve["dtype"], lock.serve["attention"]
    options = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
    if device == "cuda":
        # Not `.to(device)` afterwards: the unused, tied lm_head stays on the meta device and cannot be moved.
        options["device_map"] = "cuda"
    images, started = pages(), time.monotonic()
    model, processor = by_name(lock, options)
    load_seconds = time.monotonic() - started
    asked, scaler = lock.serve.get("image_processor"), type(processor.image_processor).__name__
    if asked:  # transformers takes another one where this one cannot be had, and only warns
        backend = getattr(processor.image_processor, "backend", "unknown")
        checks.add(f"the image processor is {asked}'s", backend == asked, f"{scaler} ({backend})")
    ours, latency = embed(model, processor, images, device)
    again, _ = embed(model, processor, images, device)
    examine(checks, ours, again)
    del model
    odd = []
    if lock.served.role == "adapter":
        base, odd = base_alone(lock, options)
        off, _ = embed(base, processor, images, device)
        del base
        change = 1 - sum(cosines(ours, off)) / len(cosines(ours, off))
        checks.add("the adapter changes the output", change > 1e-4, f"mean cosine distance on/off {change:.6f}")
    pinned, more = by_commit(lock, options)
    odd += more
    checks.add("no key is missing or unexpected", not odd, ", ".join(odd[:6]))
    theirs, _ = embed(pinned, load_processor(lock, revision=lock.served.commit), images, device)
    worst = cosines(ours, theirs)[0]
    checks.add("by name and by commit are the same model", worst > 0.9999, f"lowest cosine {worst:.6f}")
    where = paths(root)
    checks.add("every file read lies in the release", not where, ", ".join(where[:4]))
    result = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "dtype": dtype,
        "attention": attention,
        "image_processor": scaler,
        "load_seconds": round(load_seconds, 3),
        "latency_ms": {kind: round(value, 2) for kind, value in latency.items()},
        "peak_memory_bytes": peak(device),
        "versions": versions(),
        "scores": [[round(score, 4) for score in row] for row in maxsim(ours)],
    }
    ours_class = f"{device}/{dtype}"
    digest = inputs_sha256(images)
    embeddings = {"class": ours_class, "queries": list(QUERIES), "inputs_sha256": digest, "vectors": packed(ours)}
    result.update(embeddings=embeddings, cosine=None, against=None)
    if args.goldens:
        compare(checks, result, lock, ours, ours_class, digest, args)
    return result


def examine(checks, ours, again):
    import torch

    wrong = [f"{name} {tuple(v.shape)}" for name, v in ours.items() if v.ndim != 2 or v.shape[1] != 128 or not len(v)]
    checks.add("shape is (n, 128)", not wrong, ", ".join(wrong))
    checks.add("every value is finite", all(torch.isfinite(v).all() for v in ours.values()))
    norms = torch.cat([v.norm(dim=1) for v in ours.values()])
    checks.add("vectors have unit norm", ((norms - 1).abs() < 0.01).all(), f"{norms.min():.4f} to {norms.max():.4f}")
    worst = cosines(ours, again)[0]
    checks.add("two forwards agree", worst > 0.99999, f"lowest cosine {worst:.7f}")
    apart = cosines({"a": ours["page0"]}, {"a": ours["page1"]}) if ours["page0"].shape == ours["page1"].shape else [0]
    checks.add(
        "pages differ from each other", sum(apart) / len(apart) < 0.9999, f"mean cosine {sum(apart) / len(apart):.4f}"
    )


def compare(checks, result, lock, ours, ours_class, digest, args):
    with open(args.goldens, encoding="ascii") as file:
        goldens = json.load(file)
    checks.add("goldens are this release's", goldens.get("release") == lock.id, str(goldens.get("release"))[:12])
    chosen = choose(ours_class, goldens.get("classes") or {})
    if chosen is None:
        return checks.add("there are goldens to compare with", False, "none")
    name, floors = chosen
    golden = goldens["classes"][name]
    floors = dict(args.tolerance).get(ours_class, floors)
    checks.add("goldens are of the same inputs", golden["inputs_sha256"] == digest, golden["inputs_sha256"][:12])
    theirs = unpacked(golden["vectors"])
    shapes = {key: tuple(v.shape) for key, v in ours.items()} == {key: tuple(v.shape) for key, v in theirs.items()}
    checks.add("goldens have the same shape", shapes)
    if not shapes:
        return None
    found = cosines(ours, theirs)
    mean, p1 = sum(found) / len(found), found[len(found) // 100]
    result.update(cosine={"mean": round(mean, 6), "p1": round(p1, 6), "min": round(found[0], 6)}, against=name)
    detail = f"mean {mean:.5f}, p1 {p1:.5f} against {name}; expected at least {floors[0]}, {floors[1]}"
    checks.add("embeddings are the goldens'", mean >= floors[0] and p1 >= floors[1], detail)
    order = [[sorted(range(PAGES), key=lambda p: -row[p]) for row in maxsim(v)] for v in (ours, theirs)]
    checks.add("MaxSim ranks pages as the goldens do", order[0] == order[1], f"{order[0]} against {order[1]}")
    return None


def paths(root):
    """Files of a Hugging Face cache that this process has open or mapped outside the release."""
    real, found = os.path.realpath(root) + os.sep, set()
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        names = {line.split(maxsplit=5)[5].strip() for line in file if line.count("/")}
    for name in names:
        if name.endswith(".safetensors") and not os.path.realpath(name).startswith(real):
            found.add(name)
    for model in ("/root/.cache/huggingface/hub", os.path.expanduser("~/.cache/huggingface/hub")):
        if os.path.isdir(model) and not os.path.realpath(model).startswith(real) and os.listdir(model):
            found.add(f"{model} (another cache in the image)")
    return sorted(found)


def peak(device):
    import resource

    import torch

    return (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )


def versions():
    from importlib.metadata import version

    names = ("torch", "transformers", "peft", "colpali-engine", "huggingface_hub", "safetensors")
    found = {"python": sys.version.split()[0]}
    for name in names:
        with contextlib.suppress(Exception):
            found[name] = version(name)
    return found
