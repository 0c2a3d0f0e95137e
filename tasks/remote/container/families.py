"""Loads the release's model, of any known family: by its name, by its commits, and the base of an adapter alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.shared.lock import Lock, Model

# family -> names in colpali_engine.models. A new family is added here and in the setting `family` only.
FAMILIES = {
    "colpali": ("ColPali", "ColPaliProcessor"),
    "colqwen2": ("ColQwen2", "ColQwen2Processor"),
    "colqwen2.5": ("ColQwen2_5", "ColQwen2_5_Processor"),
    "colsmol": ("ColIdefics3", "ColIdefics3Processor"),
}


def classes(lock: Lock) -> tuple[Any, Any]:
    """The classes of the model and of its processor."""
    import colpali_engine.models as models

    model, processor = FAMILIES[lock.serve["family"]]
    return getattr(models, model), getattr(models, processor)


def load_processor(lock: Lock, **pinned: str) -> Any:
    """The processor, with the image processor of the backend that the release asks for, where it asks for one."""
    repo, processor = lock.served.repo, classes(lock)[1]
    loaded = processor.from_pretrained(repo, **pinned)
    if lock.serve.get("image_processor"):
        from transformers import AutoImageProcessor

        # `backend` does not go to the processor: its tokenizer and video processor get it too, and ColQwen2's refuses "pil".
        backend = lock.serve["image_processor"]
        loaded.image_processor = AutoImageProcessor.from_pretrained(repo, backend=backend, **pinned)
    return loaded


def by_name(lock: Lock, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """The model and the processor, loaded as an app does that nobody changed: by the name alone."""
    return classes(lock)[0].from_pretrained(lock.served.repo, **options).eval(), load_processor(lock)


def by_commit(lock: Lock, options: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The model, loaded by its commit; and the keys of its own weights that were missing or unexpected.

    For an adapter, `revision` is its base's and `adapter_kwargs` has its own. Loading the base and then `load_adapter` is
    another thing: that forgets how the class renames keys, and the LoRA weights of ColQwen2 are left out.
    """
    served = lock.served
    pinned: dict[str, Any] = {"revision": served.commit}
    if served.role == "adapter":
        pinned = {"revision": base_of(lock).commit, "adapter_kwargs": {"revision": served.commit}}
    return load(lock, served.repo, {**pinned, **options})


def base_alone(lock: Lock, options: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The base of an adapter, without it; and the keys that were missing or unexpected."""
    base = base_of(lock)
    return load(lock, base.repo, {"revision": base.commit, **options})


def base_of(lock: Lock) -> Model:
    """The base of the adapter that is served."""
    return next(model for model in lock.models if model.repo == lock.served.base)


def load(lock: Lock, repo: str, options: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """A model with these options of `from_pretrained`; and the keys that were missing or unexpected."""
    model, info = classes(lock)[0].from_pretrained(repo, output_loading_info=True, **options)
    return model.eval(), odd_keys(info)


def odd_keys(info: Any) -> list[str]:
    """The keys that transformers says did not fit. `info`: a dictionary or an object, by its version."""
    found = []
    for name in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = info.get(name) if isinstance(info, dict) else getattr(info, name, None)
        found += [str(key) for key in keys or []]
    return found
