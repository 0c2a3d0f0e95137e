"""Making a lock, and accepting goldens: the operations of tasks/lock.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyinfra import host, logger
from pyinfra.api import operation

from tasks.control.git import files as git_files
from tasks.control.git.lockfile import lock_path, read_lock, served
from tasks.control.host_run import HostRun
from tasks.control.operations.fetching import call_fetch, ensure_venv, export_image, hub_document, set_up_bastion
from tasks.control.rules.states import State
from tasks.control.run import Run
from tasks.control.tool import call, ensure_tool, expect, fail, guarded
from tasks.shared.errors import Refused
from tasks.shared.lock import FORMAT, lock_text, parse_lock, release_id
from tasks.shared.signatures import sign_command
from tasks.shared.spaces import embedding_space

Document = Mapping[str, Any]


def upstream(run: Run, me: HostRun) -> dict[str, Any]:
    """The Hub's answer to what the settings ask for: {"models": […], "asked": {…}, "left_out": {…}} (`fetch resolve`)."""
    set_up_bastion(run, me)
    ensure_venv(run, me)
    document = hub_document(me.settings, models=[model.model_dump() for model in me.settings.models])
    return dict(expect(call_fetch(run, me, "resolve", document, 900)))


def what_moved(old: Document, new: Document) -> list[str]:
    """What differs between the models of two locks, a sentence for each repository."""
    before = {model["repo"]: model for model in old["models"]}
    found = []
    for model in new["models"]:
        was = before.get(model["repo"], {"commit": "nothing", "files": {}})
        if was["commit"] != model["commit"]:
            changed = [path for path, file in model["files"].items() if was["files"].get(path) != file]
            count = sum(model["files"][path]["size"] for path in changed)
            commits = f"{was['commit'][:12]} -> {model['commit'][:12]}"
            found.append(f"{model['repo']}: {commits}, {len(changed)} files, {count} bytes")
    return found


@operation(is_idempotent=True)
def lock(run: Run, old: Document | None) -> Any:
    """Write the lock. One that exists (`old`) for the same question keeps its commits, unless `update` is asked for."""
    me = run.hosts[host.name]
    if me.state is State.UNFIT:
        host.noop("unfit")
        return
    if not run.command_line.dry:
        yield guarded(me, lambda: write_lock(run, me, old))
        return
    try:
        compare(run, me, old)
    except Refused as no:
        fail(me, str(no))


def asked(me: HostRun) -> dict[str, str]:
    """{repository: revision} as the settings ask."""
    return {model.repo: model.revision for model in me.settings.models}


def keeps_commits(me: HostRun, old: Document | None) -> bool:
    """Whether the lock keeps the commits that it has, whatever moved upstream."""
    return old is not None and old["asked"] == asked(me) and not me.settings.update


def news_of(me: HostRun, old: Document | None, new: Document) -> list[str]:
    """What moved upstream since the lock was made, told to the operator."""
    news = what_moved(old, new) if old else []
    stays = "; the lock stays. Next: tasks/lock.py --data update=true" if keeps_commits(me, old) else ""
    for line in news:
        logger.info(f"    moved upstream: {line}{me.command_line.complete(stays)}")
    return news


def compare(run: Run, me: HostRun, old: Document | None) -> bool:
    """With --dry: what moved upstream, and whether the lock would change."""
    news = news_of(me, old, upstream(run, me))
    other = old is None or old["asked"] != asked(me) or old["serve"] != served(me.settings)
    changes = other or (news and not keeps_commits(me, old))
    me.says(State.WOULD_CHANGE if changes else State.UP_TO_DATE, "; ".join(news))
    return True


def write_lock(run: Run, me: HostRun, old: Document | None) -> bool:
    settings, new = me.settings, upstream(run, me)
    news_of(me, old, new)
    for repo, names in sorted(new["left_out"].items()):
        logger.info(f"    {repo}: left out {', '.join(names) or 'nothing'}")
    models = old["models"] if old and keeps_commits(me, old) else new["models"]
    image = dict(export_image(run, me, None))
    document = {"format": FORMAT, "asked": asked(me), "models": models, "image": image, "serve": served(settings)}
    path, text = lock_path(settings), lock_text(document)
    parse_lock(text, str(path))
    spaces = [embedding_space(parse_lock(lock_text(each))) for each in (old, document) if each]
    if len(set(spaces)) > 1:
        logger.info(f"    embedding space: {' -> '.join(spaces)}; an index made in one does not answer for the other")
    same = path.exists() and path.read_text(encoding="utf-8") == text
    if not same:
        git_files.replace(path, text)
    me.says(State.UNCHANGED if same else State.WRITTEN)
    me.goes_to = release_id(document)
    logger.info(f"    {path}: release {me.goes_to[:12]}" + (", as it was" if same else ", for git"))
    if settings.sign and not same:
        logger.info(f"    Next: {sign_command(str(path))}")
    return True


@operation(is_idempotent=True)
def accept_goldens(run: Run) -> Any:
    """The embeddings that this host's smoke test left for the locked release become the goldens."""
    me = run.hosts[host.name]
    yield guarded(me, lambda: save_goldens(run, me))


def save_goldens(run: Run, me: HostRun) -> bool:
    release = read_lock(me.settings, me.command_line.inventory)
    ensure_tool(run, me)
    found = expect(call(run, me, "engine", "embeddings", release=release.id))
    run.goldens.save(release, found["embeddings"])
    me.says(State.WRITTEN)
    me.goes_to = release.id
    return True
