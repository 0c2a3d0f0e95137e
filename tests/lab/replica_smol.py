"""A tiny ColSmol (ColIdefics3), twice: merged, as one full repository, and with adapter *and* full weights in one.

The second is how vidore/colSmol-256M comes. By its name transformers loads the base that the adapter names, and never the
full weights beside it; these are therefore other weights here, so that a load that takes them shows.
"""

from __future__ import annotations

import torch
from replica_parts import (
    LAYERS,
    adapter_repository,
    document,
    full_weights,
    lora_weights,
    safe,
    skeleton,
)
from replica_qwen2 import byte_level, neutral

MERGED = "docai/colsmol-tiny"
BOTH = "docai/colsmol-both-tiny"
TARGETS = f"(.*(model.text_model).*({LAYERS}).*$|.*(linear).*$)"
GRID = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *GRID, "<global-img>"]
ADDED = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}: {{ message.content }}<end_of_utterance>\n{% endfor %}"
)
IMAGE_SIZE, PATCH, SCALE = 64, 8, 4


def processor_files() -> dict[str, bytes]:
    _, files = byte_level([*SPECIALS, *ADDED])
    named = {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>"}
    named |= {"unk_token": "<|endoftext|>", "additional_special_tokens": ADDED}
    tokenizer = named | {
        "add_prefix_space": False,
        "chat_template": CHAT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
        "processor_class": "ColIdefics3Processor",
        "tokenizer_class": "GPT2Tokenizer",
        "truncation_side": "left",
    }
    image = {
        "do_convert_rgb": True,
        "do_image_splitting": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Idefics3ImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": IMAGE_SIZE},
        "processor_class": "ColIdefics3Processor",
        "resample": 1,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": 2 * IMAGE_SIZE},
    }
    seen = (IMAGE_SIZE // PATCH // SCALE) ** 2
    return files | {
        "preprocessor_config.json": document(image),
        "processor_config.json": document({"image_seq_len": seen, "processor_class": "ColIdefics3Processor"}),
        "chat_template.json": document({"chat_template": CHAT}),
        "tokenizer_config.json": document(tokenizer),
        "special_tokens_map.json": document(named),
    }


def config() -> dict:
    ids, _ = byte_level([*SPECIALS, *ADDED])
    return {
        "architectures": ["ColIdefics3"],
        "image_token_id": ids["<image>"],
        "model_type": "idefics3",
        "scale_factor": SCALE,
        "text_config": {
            "head_dim": 32,
            "hidden_size": 128,
            "intermediate_size": 256,
            "max_position_embeddings": 8192,
            "model_type": "llama",
            "num_attention_heads": 4,
            "num_hidden_layers": 4,
            "num_key_value_heads": 2,
            "pad_token_id": ids["<|im_end|>"],
            "rms_norm_eps": 1e-05,
            "rope_theta": 100000,
            "torch_dtype": "bfloat16",
            "vocab_size": len(ids),
        },
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vision_config": {
            "hidden_size": 64,
            "image_size": IMAGE_SIZE,
            "intermediate_size": 128,
            "model_type": "idefics3_vision",
            "num_attention_heads": 2,
            "num_hidden_layers": 3,
            "patch_size": PATCH,
        },
        "vocab_size": len(ids),
    }


def shapes() -> dict[str, torch.Size]:
    from colpali_engine.models import ColIdefics3
    from transformers import Idefics3Config

    return skeleton(ColIdefics3, Idefics3Config(**config()))


def full(seed: int) -> dict[str, bytes]:
    weights = full_weights(shapes(), seed, str, neutral)
    return processor_files() | {"config.json": document(config()), "model.safetensors": safe(weights)}


def versions() -> list[tuple[str, str, list[str], dict[str, bytes]]]:
    merged = full(3100) | {"README.md": b"---\nlicense: mit\n---\n# A tiny merged ColSmol for tests\n"}
    weights = lora_weights(shapes(), 3101, str, TARGETS)
    both = full(3102) | adapter_repository(MERGED, TARGETS, weights, "A tiny ColSmol with all there is, for tests")
    return [(MERGED, "v1", ["v1", "main"], merged), (BOTH, "v1", ["v1", "main"], both)]
