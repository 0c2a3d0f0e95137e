"""Loads the release's model, of whatever family: by its name, by its commits, and the base of an adapter alone.

Part of the smoke program.
"""

from __future__ import annotations

# family -> names in colpali_engine.models; others are added here and in the setting `family`, and nowhere else.
FAMILIES = {
    "colpali": ("ColPali", "ColPaliProcessor"),
    "colqwen2": ("ColQwen2", "ColQwen2Processor"),
    "colqwen2.5": ("ColQwen2_5", "ColQwen2_5_Processor"),
    "colsmol": ("ColIdefics3", "ColIdefics3Processor"),
}


def classes(lock):
    import colpali_engine.models as models

    return tuple(getattr(models, name) for name in FAMILIES[lock.serve["family"]])


def load_processor(lock, **pinned):
    """The processor; its image processor by the backend that the release asks for, if it asks."""
    repo, processor = lock.served.repo, classes(lock)[1]
    loaded = processor.from_pretrained(repo, **pinned)
    if lock.serve.get("image_processor"):
        from transformers import AutoImageProcessor

        # Not `backend` to the processor: the tokenizer and the video processor get it too, and ColQwen2's refuses "pil".
        backend = lock.serve["image_processor"]
        loaded.image_processor = AutoImageProcessor.from_pretrained(repo, backend=backend, **pinned)
    return loaded


def by_name(lock, options):
    """As an unmodified app does: nothing but the name."""
    return classes(lock)[0].from_pretrained(lock.served.repo, **options).eval(), load_processor(lock)


def by_commit(lock, options):
    """The pinned form -> (model, keys of its own weights that were missing or unexpected).

    For an adapter, `revision` is its base's and `adapter_kwargs` has its own. Not the base and then `load_adapter`: that
    forgets how the class renames keys, and the LoRA weights of ColQwen2 stay behind.
    """
    served = lock.served
    pinned = {"revision": served.commit}
    if served.role == "adapter":
        pinned = {"revision": base_of(lock).commit, "adapter_kwargs": {"revision": served.commit}}
    return loaded(lock, served.repo, {**pinned, **options})


def base_alone(lock, options):
    """What an adapter stands on, without it -> (model, keys that were missing or unexpected)."""
    base = base_of(lock)
    return loaded(lock, base.repo, {"revision": base.commit, **options})


def base_of(lock):
    return next(model for model in lock.models if model.repo == lock.served.base)


def loaded(lock, repo, options):
    model, info = classes(lock)[0].from_pretrained(repo, output_loading_info=True, **options)
    return model.eval(), odd_keys(info)


def odd_keys(info):
    if info is None:
        return []
    get = info.get if isinstance(info, dict) else lambda key, default=None: getattr(info, key, default)
    return [str(key) for name in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in get(name) or []]
