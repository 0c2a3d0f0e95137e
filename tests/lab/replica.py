"""Make the lab's model: a real ColPali with random weights, a few MB, in the layout of vidore's repositories.

Run where torch and colpali-engine are (the backend image): `python replica.py OUTDIR`. Two runs give the same bytes.

What makes it worth testing with: the adapter's lora_B is not zero (a dropped adapter must show), the weights are drawn
wide (pages must differ), the adapter repository has no config.json, carries a checkpoint with pickles and a local base
path, its tensors bear the upstream's legacy names, and its tokenizer.json is a real fast tokenizer.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import torch
from hub_repo import commit
from safetensors.torch import save

BASE = "docai/colpaligemma-tiny-base"
ADAPTER = "docai/colpali-tiny"
PLAIN = "docai/plain-tiny"
# One seed a version; `wrong` is another model under the same names, for tests that a smoke test must fail.
SEEDS = {"v1": 1101, "v2": 1102, "wrong": 1999}
REFS = {"v1": ["v1", "main"], "v2": ["v2"], "wrong": ["wrong"]}
RANK, ALPHA = 8, 8
IMAGE_SIZE, PATCH = 112, 14
WORDS = [
    "what",
    "which",
    "where",
    "who",
    "when",
    "how",
    "much",
    "many",
    "is",
    "are",
    "was",
    "the",
    "of",
    "in",
    "on",
    "and",
    "or",
    "for",
    "by",
    "per",
    "page",
    "table",
    "figure",
    "revenue",
    "year",
    "quarter",
    "total",
    "growth",
    "energy",
    "price",
    "bar",
    "chart",
    "red",
    "green",
    "blue",
    "circle",
    "left",
    "right",
    "small",
    "large",
    "question",
    "describe",
    "image",
    "show",
    "report",
    "invoice",
    "number",
    "date",
]


# ----------------------------------------------------------------------------------------------------- tokenizer


def tokenizer_files() -> dict[str, bytes]:
    """A fast tokenizer of Gemma's kind (BPE with byte fallback, `▁` for a space), as the upstream ships it."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    located = [f"<loc{i:0>4}>" for i in range(1024)] + [f"<seg{i:0>3}>" for i in range(128)]
    pieces = [f"<0x{i:02X}>" for i in range(256)] + ["▁"] + [chr(c) for c in range(33, 127)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left = "▁"
        for letter in word:
            if (left, letter) not in merges:
                merges.append((left, letter))
                pieces.append(left + letter)
            left += letter
    vocab = {token: i for i, token in enumerate(specials + pieces + located + ["<image>"])}
    added = [
        {"id": vocab[token], "content": token, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": token in specials or token == "<image>"}
        for token in [*specials, *located, "<image>"]
    ]
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    fast = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, bos, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [vocab["<bos>"]], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(pair) for pair in merges],
        },
    }
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    settings = named | {
        "add_bos_token": True,
        "add_eos_token": False,
        "additional_special_tokens": ["<image>"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1000000000000000019884624838656,
        "processor_class": "ColPaliProcessor",
        "tokenizer_class": "GemmaTokenizer",
    }
    return {
        "tokenizer.json": document(fast),
        "tokenizer_config.json": document(settings),
        "special_tokens_map.json": document(named | {"additional_special_tokens": ["<image>"]}),
    }


def processor_files() -> dict[str, bytes]:
    image = {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_seq_length": (IMAGE_SIZE // PATCH) ** 2,
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "ColPaliProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    }
    return {"preprocessor_config.json": document(image), **tokenizer_files()}


# ------------------------------------------------------------------------------------------------------- weights


def config(vocab_size: int) -> dict:
    """The base model's config.json, in the upstream's older spelling; all the sizes that make it tiny."""
    return {
        "architectures": ["ColPali"],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "hidden_size": 128,
        "ignore_index": -100,
        "image_token_index": vocab_size - 1,
        "model_type": "paligemma",
        "pad_token_id": 0,
        "projection_dim": 128,
        "text_config": {
            "head_dim": 32,
            "hidden_activation": None,
            "hidden_size": 128,
            "intermediate_size": 384,
            "model_type": "gemma",
            "num_attention_heads": 4,
            "num_hidden_layers": 4,
            "num_image_tokens": (IMAGE_SIZE // PATCH) ** 2,
            "num_key_value_heads": 1,
            "torch_dtype": "bfloat16",
            "vocab_size": vocab_size,
        },
        "torch_dtype": "bfloat16",
        "vision_config": {
            "hidden_size": 128,
            "image_size": IMAGE_SIZE,
            "intermediate_size": 256,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "num_image_tokens": (IMAGE_SIZE // PATCH) ** 2,
            "patch_size": PATCH,
            "projection_dim": 128,
            "vision_use_head": False,
        },
    }


def legacy(name: str) -> str:
    """A tensor's name as the upstream's files spell it, from before transformers moved the parts about."""
    for new, old in (
        ("model.model.language_model.", "model.language_model.model."),
        ("model.model.vision_tower.", "model.vision_tower."),
        ("model.model.multi_modal_projector.", "model.multi_modal_projector."),
    ):
        if name.startswith(new):
            return old + name[len(new) :]
    return name


def wide(shape: torch.Size, generator: torch.Generator, gain: float) -> torch.Tensor:
    """Random numbers whose spread keeps a signal's size through the layer: so that every weight matters."""
    fan_in = shape[1:].numel() if len(shape) > 1 else shape[0]
    return (torch.randn(shape, generator=generator) * gain / fan_in**0.5).to(torch.bfloat16)


def skeleton(vocab_size: int) -> dict[str, torch.Size]:
    """Name and shape of each weight of the model, from the real class; the tied output head left out."""
    from colpali_engine.models import ColPali
    from transformers import PaliGemmaConfig

    with torch.device("meta"):
        model = ColPali(PaliGemmaConfig(**config(vocab_size)))
    return {name: value.shape for name, value in model.named_parameters() if "lm_head" not in name}


def base_weights(shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1100)
    weights = {}
    for name, shape in sorted(shapes.items()):
        if "norm" in name:
            # Gemma's norm adds one to its weight; SigLIP's does not.
            neutral = 1.0 if "vision_tower" in name and name.endswith("weight") else 0.0
            weights[legacy(name)] = torch.full(shape, neutral, dtype=torch.bfloat16)
        elif "embed_tokens" in name or "position_embedding" in name:
            scale = 1.0 if "embed_tokens" in name else 0.3
            weights[legacy(name)] = (torch.randn(shape, generator=generator) * scale).to(torch.bfloat16)
        else:
            weights[legacy(name)] = wide(shape, generator, 0.1 if name.endswith("bias") else 1.6)
    return weights


def adapter_weights(shapes: dict[str, torch.Size], seed: int) -> dict[str, torch.Tensor]:
    """LoRA pairs for the language model and the projection; lora_B is drawn too (training starts it at zero)."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in sorted(shapes.items()):
        if not (("language_model" in name and "_proj" in name) or name == "custom_text_proj.weight"):
            continue
        stem = "base_model.model." + legacy(name).removesuffix(".weight")
        weights[f"{stem}.lora_A.weight"] = wide(torch.Size((RANK, shape[1])), generator, 1.0).float()
        weights[f"{stem}.lora_B.weight"] = wide(torch.Size((shape[0], RANK)), generator, 0.45).float()
    return weights


def adapter_config(base: str) -> dict:
    parts = "down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj"
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
        "target_modules": f"(.*(language_model).*({parts}).*$|.*(custom_text_proj).*$)",
        "task_type": "FEATURE_EXTRACTION",
        "use_dora": False,
        "use_rslora": False,
    }


# ------------------------------------------------------------------------------------------------------- layouts


def document(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def safe(weights: dict[str, torch.Tensor]) -> bytes:
    return save(weights, metadata={"format": "pt"})


def base_files() -> dict[str, bytes]:
    files = processor_files()
    vocab_size = len(json.loads(files["tokenizer.json"])["model"]["vocab"])
    weights = base_weights(skeleton(vocab_size))
    names = sorted(weights)
    shards, total = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}, 0
    size = sum(weights[name].nbytes for name in names)
    first, second = shards
    where = {}
    for name in names:
        where[name] = first if total < size * 0.8 else second
        shards[where[name]][name] = weights[name]
        total += weights[name].nbytes
    index = {"metadata": {"total_size": size}, "weight_map": where}
    files |= {shard: safe(part) for shard, part in shards.items()}
    return files | {
        "config.json": document(config(vocab_size)),
        "model.safetensors.index.json": document(index),
        "README.md": b"---\nlicense: mit\n---\n# A tiny ColPaliGemma base with random weights, for tests\n",
    }


def adapter_files(version: str) -> dict[str, bytes]:
    """The adapter's repository: no config.json, and a training checkpoint that no release may take."""
    files = processor_files()
    vocab_size = len(json.loads(files["tokenizer.json"])["model"]["vocab"])
    weights = adapter_weights(skeleton(vocab_size), SEEDS[version])
    stale = {name: torch.zeros_like(value) for name, value in weights.items()}
    return files | {
        "adapter_config.json": document(adapter_config(BASE)),
        "adapter_model.safetensors": safe(weights),
        "README.md": f"---\nlicense: mit\nbase_model: {BASE}\n---\n# A tiny ColPali for tests\n".encode(),
        "git_hash.txt": b"0000000000000000000000000000000000000000\n",
        "results.json": document({"ndcg_at_5": 0.0}),
        "training_config.yml": b"config:\n  seed: 0\n",
        "checkpoint-10/adapter_config.json": document(adapter_config("./models/colpaligemma-tiny-base")),
        "checkpoint-10/adapter_model.safetensors": safe(stale),
        "checkpoint-10/optimizer.pt": pickle.dumps({"state": {}}, protocol=4),
        "checkpoint-10/training_args.bin": pickle.dumps({"seed": 0}, protocol=4),
    }


def plain_files(version: str) -> dict[str, bytes]:
    """A repository of another kind, for the lab's light backend: weights are bytes that nothing but it understands."""
    generator = torch.Generator().manual_seed(sum(version.encode()))
    noise = torch.rand(4096, generator=generator)
    return {"config.json": document({"model_type": "plain"}), "model.safetensors": safe({"noise": noise})}


def plain_versions() -> list[tuple[str, str, list[str], dict[str, bytes]]]:
    """v1, v2, and v1 again with another README: another commit, the same embedding space."""
    same = plain_files("v1") | {"README.md": b"# Better words\n"}
    return [
        (PLAIN, "v1", ["v1", "main"], plain_files("v1")),
        (PLAIN, "v2", ["v2"], plain_files("v2")),
        (PLAIN, "words", ["words"], same),
    ]


def versions() -> list[tuple[str, str, list[str], dict[str, bytes]]]:
    """(repository, version, refs, files) for each commit of the lab's Hub, in the order they were made."""
    base = [(BASE, "v1", ["main"], base_files())]
    adapters = [(ADAPTER, version, REFS[version], adapter_files(version)) for version in SEEDS]
    return base + adapters + plain_versions()


def main(out: Path) -> None:
    for repo, version, refs, files in versions():
        sha = commit(out, repo, files, refs)
        print(f"{repo} {version} {sha[:12]} {refs}: {sum(map(len, files.values()))} bytes", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
