"""What the lab's tiny models share: words, weights drawn wide, safetensors, and how an adapter's repository looks."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping

import torch
from safetensors.torch import save

RANK, ALPHA = 8, 8
LAYERS = "down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj"
WORDS = re.findall(
    r"\w+",
    "what which where who when how much many is are was the of in on and or for by per page table figure revenue year"
    " quarter total growth energy price bar chart red green blue circle left right small large question describe image"
    " show report invoice number date",
)
Shapes = Mapping[str, torch.Size]
Weights = dict[str, torch.Tensor]


def document(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def safe(weights: Weights) -> bytes:
    return save(weights, metadata={"format": "pt"})


def pieces_of(words: list[str], space: str) -> tuple[list[str], list[tuple[str, str]]]:
    """(pieces, merges) of a BPE that knows these words whole, each with `space` for the blank before it."""
    pieces: list[str] = []
    merges: list[tuple[str, str]] = []
    for word in words:
        left = space
        for letter in word:
            if (left, letter) not in merges:
                merges.append((left, letter))
                pieces.append(left + letter)
            left += letter
    return pieces, merges


def added_token(number: int, content: str, special: bool) -> dict:
    token = {"id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False}
    return token | {"normalized": False, "special": special}


# ------------------------------------------------------------------------------------------------------- weights


def skeleton(model_class: type, config: object) -> dict[str, torch.Size]:
    """Name and shape of each weight of a model, from its real class, without the weights."""
    with torch.device("meta"):
        model = model_class(config)
    return {name: value.shape for name, value in model.named_parameters()}


def wide(shape: torch.Size, generator: torch.Generator, gain: float) -> torch.Tensor:
    """Random numbers whose spread keeps a signal's size through the layer: so that every weight matters."""
    fan_in = shape[1:].numel() if len(shape) > 1 else shape[0]
    return (torch.randn(shape, generator=generator) * gain / fan_in**0.5).to(torch.bfloat16)


def full_weights(shapes: Shapes, seed: int, spelled: Callable[[str], str], neutral: Callable[[str], float]) -> Weights:
    """All weights of a model under the upstream's names; `neutral`: what a norm's parameter starts from."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in sorted(shapes.items()):
        if "norm" in name or "ln_q" in name:
            weights[spelled(name)] = torch.full(shape, neutral(name), dtype=torch.bfloat16)
        elif "embed_tokens" in name or "position_embedding" in name:
            scale = 1.0 if "embed_tokens" in name else 0.3
            weights[spelled(name)] = (torch.randn(shape, generator=generator) * scale).to(torch.bfloat16)
        else:
            weights[spelled(name)] = wide(shape, generator, 0.1 if name.endswith("bias") else 1.6)
    return weights


def lora_weights(shapes: Shapes, seed: int, spelled: Callable[[str], str], targets: str) -> Weights:
    """LoRA pairs for the modules that `targets` names; lora_B is drawn too (training starts it at zero)."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in sorted(shapes.items()):
        if not name.endswith(".weight") or not re.fullmatch(targets, name.removesuffix(".weight")):
            continue
        stem = "base_model.model." + spelled(name).removesuffix(".weight")
        weights[f"{stem}.lora_A.weight"] = wide(torch.Size((RANK, shape[1])), generator, 1.0).float()
        weights[f"{stem}.lora_B.weight"] = wide(torch.Size((shape[0], RANK)), generator, 0.45).float()
    return weights


# ------------------------------------------------------------------------------------------------------- layouts


def sharded(weights: Weights) -> dict[str, bytes]:
    """Two shards and their index, as large models come."""
    names = sorted(weights)
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    shards: dict[str, Weights] = {first: {}, second: {}}
    total, size = 0, sum(weights[name].nbytes for name in names)
    where = {}
    for name in names:
        where[name] = first if total < size * 0.8 else second
        shards[where[name]][name] = weights[name]
        total += weights[name].nbytes
    index = {"metadata": {"total_size": size}, "weight_map": where}
    files = {shard: safe(part) for shard, part in shards.items()}
    return files | {"model.safetensors.index.json": document(index)}


def adapter_config(base: str, targets: str) -> dict:
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": "gaussian",
        "lora_alpha": ALPHA,
        "lora_dropout": 0.1,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": RANK,
        "rank_pattern": {},
        "revision": None,
        "target_modules": targets,
        "task_type": "FEATURE_EXTRACTION",
        "use_dora": False,
        "use_rslora": False,
    }


def adapter_repository(base: str, targets: str, weights: Weights, title: str) -> dict[str, bytes]:
    """An adapter and what its training left beside it: a checkpoint, with pickles, that no release may take."""
    stale = {name: torch.zeros_like(value) for name, value in weights.items()}
    local = f"./models/{base.partition('/')[2]}"
    return {
        "adapter_config.json": document(adapter_config(base, targets)),
        "adapter_model.safetensors": safe(weights),
        "README.md": f"---\nlicense: mit\nbase_model: {base}\n---\n# {title}\n".encode(),
        "git_hash.txt": b"0000000000000000000000000000000000000000\n",
        "results.json": document({"ndcg_at_5": 0.0}),
        "training_config.yml": b"config:\n  seed: 0\n",
        "checkpoint-10/adapter_config.json": document(adapter_config(local, targets)),
        "checkpoint-10/adapter_model.safetensors": safe(stale),
        "checkpoint-10/optimizer.pt": pickle.dumps({"state": {}}, protocol=4),
        "checkpoint-10/training_args.bin": pickle.dumps({"seed": 0}, protocol=4),
    }
