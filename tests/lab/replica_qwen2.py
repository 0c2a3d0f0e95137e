"""A tiny ColQwen2: an adapter over a base, in the layout and with the tensor names of vidore/colqwen2-v1.0.

Its tokenizer is Qwen's kind (byte-level BPE with vocab.json and merges.txt beside tokenizer.json), its images become as
many patches as their size asks for, and its tensors bear the names from before transformers moved the parts about.
"""

from __future__ import annotations

import torch
from replica_parts import (
    LAYERS,
    WORDS,
    adapter_repository,
    added_token,
    document,
    full_weights,
    lora_weights,
    pieces_of,
    sharded,
    skeleton,
)

BASE = "docai/colqwen2-tiny-base"
ADAPTER = "docai/colqwen2-tiny"
TARGETS = f"(.*(model).*({LAYERS}).*$|.*(custom_text_proj).*$)"
VISION = ("vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
SPECIALS = [f"<|{name}|>" for name in ("endoftext", "im_start", "im_end", *VISION)]
CHAT = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"


# ----------------------------------------------------------------------------------------------------- tokenizer


def byte_letters() -> list[str]:
    """The 256 letters that a byte-level BPE writes bytes as; a blank is Ġ."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b if b in plain else 256 + b - sum(p < b for p in plain)) for b in range(256)]


def byte_level(specials: list[str], template: dict | None = None) -> tuple[dict[str, int], dict[str, bytes]]:
    """(vocabulary, files) of a byte-level BPE tokenizer: tokenizer.json, and the two files of its older form."""
    known, merges = pieces_of(WORDS, "Ġ")
    vocab = {piece: number for number, piece in enumerate([*byte_letters(), *known])}
    ids = vocab | {special: len(vocab) + number for number, special in enumerate(specials)}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    fast = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(ids[special], special, special=True) for special in specials],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": plain,
        "post_processor": plain,
        "decoder": plain,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [list(pair) for pair in merges],
        },
    }
    return ids, {
        "tokenizer.json": document(fast),
        "vocab.json": document(vocab),
        "merges.txt": ("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)).encode(),
        "added_tokens.json": document({special: ids[special] for special in specials}),
    }


def processor_files() -> dict[str, bytes]:
    _, files = byte_level(SPECIALS)
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": SPECIALS[1:]}
    tokenizer = named | {
        "add_prefix_space": False,
        "bos_token": None,
        "chat_template": CHAT,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 32768,
        "processor_class": "ColQwen2Processor",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    image = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "max_pixels": 50176,
        "merge_size": 2,
        "min_pixels": 3136,
        "patch_size": 14,
        "processor_class": "ColQwen2Processor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"max_pixels": 50176, "min_pixels": 3136},
        "temporal_patch_size": 2,
    }
    return files | {
        "preprocessor_config.json": document(image),
        "chat_template.json": document({"chat_template": CHAT}),
        "tokenizer_config.json": document(tokenizer),
        "special_tokens_map.json": document(named),
    }


# ------------------------------------------------------------------------------------------------------- weights


def config() -> dict:
    """The base model's config.json, flat as the upstream's."""
    ids, _ = byte_level(SPECIALS)
    return {
        "architectures": ["ColQwen2"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "hidden_act": "silu",
        "hidden_size": 128,
        "image_token_id": ids["<|image_pad|>"],
        "intermediate_size": 256,
        "max_position_embeddings": 32768,
        "max_window_layers": 4,
        "model_type": "qwen2_vl",
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_section": [4, 6, 6], "rope_type": "default", "type": "default"},
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": {
            "depth": 3,
            "embed_dim": 64,
            "hidden_size": 128,
            "in_chans": 3,
            "mlp_ratio": 4,
            "model_type": "qwen2_vl",
            "num_heads": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "vocab_size": len(ids),
    }


def legacy(name: str) -> str:
    """A tensor's name as the upstream's files spell it: the language model was `model` then."""
    return name.replace("language_model.", "model.", 1)


def neutral(name: str) -> float:
    return 1.0 if name.endswith("weight") else 0.0


def shapes() -> dict[str, torch.Size]:
    from colpali_engine.models import ColQwen2
    from transformers import Qwen2VLConfig

    return skeleton(ColQwen2, Qwen2VLConfig(**config()))


def versions() -> list[tuple[str, str, list[str], dict[str, bytes]]]:
    base = processor_files() | sharded(full_weights(shapes(), 2100, legacy, neutral))
    base |= {"config.json": document(config()), "README.md": b"---\nlicense: apache-2.0\n---\n# A tiny ColQwen2 base\n"}
    weights = lora_weights(shapes(), 2101, legacy, TARGETS)
    adapter = processor_files() | adapter_repository(BASE, TARGETS, weights, "A tiny ColQwen2 for tests")
    return [(BASE, "v1", ["main"], base), (ADAPTER, "v1", ["v1", "main"], adapter)]
