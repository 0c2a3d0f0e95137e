"""Make the lab's model: a real ColPali with random weights, a few MB, in the layout of vidore's repositories.

Run where torch and colpali-engine are (the backend image): `python replica.py OUTDIR`. Two runs give the same bytes.

What makes it worth testing with: the adapter's lora_B is not zero (a dropped adapter must show), the weights are drawn
wide (pages must differ), the adapter repository has no config.json, carries a checkpoint with pickles and a local base
path, its tensors bear the upstream's legacy names, and its tokenizer.json is a real fast tokenizer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import replica_qwen2
import replica_smol
import torch
from hub_repo import commit
from replica_parts import (
    LAYERS,
    WORDS,
    adapter_repository,
    added_token,
    document,
    full_weights,
    lora_weights,
    pieces_of,
    safe,
    sharded,
    skeleton,
)

BASE = "docai/colpaligemma-tiny-base"
ADAPTER = "docai/colpali-tiny"
PLAIN = "docai/plain-tiny"
# One seed a version; `wrong` is another model under the same names, for tests that a smoke test must fail.
SEEDS = {"v1": 1101, "v2": 1102, "wrong": 1999}
REFS = {"v1": ["v1", "main"], "v2": ["v2"], "wrong": ["wrong"]}
TARGETS = f"(.*(language_model).*({LAYERS}).*$|.*(custom_text_proj).*$)"
IMAGE_SIZE, PATCH = 112, 14


# ----------------------------------------------------------------------------------------------------- tokenizer


def tokenizer_files() -> dict[str, bytes]:
    """A fast tokenizer of Gemma's kind (BPE with byte fallback, `▁` for a space), as the upstream ships it."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    located = [f"<loc{i:0>4}>" for i in range(1024)] + [f"<seg{i:0>3}>" for i in range(128)]
    known, merges = pieces_of(WORDS, "▁")
    pieces = [f"<0x{i:02X}>" for i in range(256)] + ["▁"] + [chr(c) for c in range(33, 127)] + known
    vocab = {token: i for i, token in enumerate(specials + pieces + located + ["<image>"])}
    added = [
        added_token(vocab[token], token, special=token in specials or token == "<image>")
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


def neutral(name: str) -> float:
    """Gemma's norm adds one to its weight; SigLIP's does not."""
    return 1.0 if "vision_tower" in name and name.endswith("weight") else 0.0


def shapes() -> dict[str, torch.Size]:
    """The model's weights; the tied output head left out."""
    from colpali_engine.models import ColPali
    from transformers import PaliGemmaConfig

    found = skeleton(ColPali, PaliGemmaConfig(**config(vocab_size())))
    return {name: shape for name, shape in found.items() if "lm_head" not in name}


# ------------------------------------------------------------------------------------------------------- layouts


def vocab_size() -> int:
    return len(json.loads(tokenizer_files()["tokenizer.json"])["model"]["vocab"])


def base_files() -> dict[str, bytes]:
    files = processor_files() | sharded(full_weights(shapes(), 1100, legacy, neutral))
    return files | {
        "config.json": document(config(vocab_size())),
        "README.md": b"---\nlicense: mit\n---\n# A tiny ColPaliGemma base with random weights, for tests\n",
    }


def adapter_files(version: str) -> dict[str, bytes]:
    """The adapter's repository: no config.json, and a training checkpoint that no release may take."""
    weights = lora_weights(shapes(), SEEDS[version], legacy, TARGETS)
    return processor_files() | adapter_repository(BASE, TARGETS, weights, "A tiny ColPali for tests")


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
    return base + adapters + replica_qwen2.versions() + replica_smol.versions() + plain_versions()


def main(out: Path) -> None:
    for repo, version, refs, files in versions():
        sha = commit(out, repo, files, refs)
        print(f"{repo} {version} {sha[:12]} {refs}: {sum(map(len, files.values()))} bytes", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
