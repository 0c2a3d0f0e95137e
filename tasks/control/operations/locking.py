"""Making a lock, and accepting goldens: operations of tasks/lock.py alone."""

from __future__ import annotations

from typing import Any

from pyinfra import host, logger
from pyinfra.api import operation

from tasks.control import lockfile as locks
from tasks.control.operations import fetching
from tasks.control.reporting import recorder as report
from tasks.control.settings import Settings
from tasks.control.tool import call, ensure_tool, expect, fail, guarded
from tasks.shared.errors import Refused
from tasks.shared.lock import FORMAT, lock_text, parse_lock, release_id
from tasks.shared.signatures import sign_command
from tasks.shared.spaces import embedding_space


def upstream(target: Any, settings: Settings) -> dict[str, Any]:
    """The Hub's answer to what the settings ask for: {"models": […], "asked": {…}} (remote/fetch.py, resolve)."""
    fetching.set_up_bastion(target, settings)
    fetching.ensure_venv(target, settings)
    models = [model.model_dump() for model in settings.models]
    document = fetching.hub(settings, models=models)
    return dict(expect(fetching.fetch_call(target, "resolve", settings, document, 900)))


def moved(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two lists of models, for people."""
    before = {model["repo"]: model for model in old["models"]}
    found = []
    for model in new["models"]:
        was = before.get(model["repo"], {"commit": "nothing", "files": {}})
        if was["commit"] != model["commit"]:
            changed = [path for path, file in model["files"].items() if was["files"].get(path) != file]
            size = sum(model["files"][path]["size"] for path in changed)
            found.append(
                f"{model['repo']}: {was['commit'][:12]} -> {model['commit'][:12]}, {len(changed)} files, {size} bytes"
            )
    return found


@operation(is_idempotent=True)
def lock(settings: Settings, old: dict[str, Any] | None):
    """Write the lock. One that exists (`old`) for the same question keeps its commits, unless `update` is asked for."""
    wanted = {model.repo: model.revision for model in settings.models}

    def work(host: Any) -> bool:
        return settle(host, settings, old, wanted, dry=False)

    if report.RESULTS[host.name]["state"] == "unfit":
        host.noop("unfit")
        return
    if report.dry():
        try:
            settle(host, settings, old, wanted, dry=True)
        except Refused as no:
            fail(host, str(no))
        return
    yield guarded(work)


def settle(target: Any, settings: Settings, old: dict[str, Any] | None, wanted: dict[str, str], dry: bool) -> bool:
    new = upstream(target, settings)
    news = moved(old, new) if old else []
    keep = old is not None and old["asked"] == wanted and not settings.update
    for line in news:
        stays = report.pasteable("; the lock stays. Next: tasks/lock.py --data update=true") if keep else ""
        logger.info(f"    moved upstream: {line}{stays}")
    if dry:
        other = old is None or old["asked"] != wanted or old["serve"] != locks.served(settings)
        state_word = "would change" if other or (news and not keep) else "as locked"
        report.record(target.name, state=state_word, why="; ".join(news))
        return True
    models = old["models"] if keep and old else new["models"]
    for repo, names in sorted(new["left_out"].items()):
        logger.info(f"    {repo}: left out {', '.join(names) or 'nothing'}")
    image = fetching.export_image(target, settings, None)
    serve = locks.served(settings)
    document = {"format": FORMAT, "asked": wanted, "models": models, "image": dict(image), "serve": serve}
    path, text = locks.lock_path(settings), lock_text(document)
    parse_lock(text, str(path))
    spaces = [embedding_space(parse_lock(lock_text(each))) for each in (old, document) if each]
    if len(set(spaces)) > 1:
        logger.info(f"    embedding space: {' -> '.join(spaces)}; an index made in one does not answer for the other")
    same = path.exists() and path.read_text(encoding="utf-8") == text
    if not same:
        locks.replace(path, text)
    report.record(target.name, state="same" if same else "locked", target=release_id(document))
    logger.info(f"    {path}: release {release_id(document)[:12]}" + (", as it was" if same else ", for git"))
    if settings.sign and not same:
        logger.info(f"    Next: {sign_command(str(path))}")
    return True


@operation(is_idempotent=True)
def accept_goldens(settings: Settings):
    """The embeddings that this host's smoke test left for the locked release become the goldens."""

    def work(host: Any) -> bool:
        lock = locks.read_lock(settings, report.inventory())
        ensure_tool(host)
        found = expect(call(host, "engine", "embeddings", release=lock.id))
        locks.Goldens(settings).save(lock, found["embeddings"])
        report.record(host.name, state="locked", target=lock.id)
        return True

    yield guarded(work)
