"""A Hub as the client huggingface_hub sees it: the download of one file, and what the client's errors mean.

The client reads its environment when it is imported. So it is imported in each function, after the program has set that.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from tasks.shared.errors import Refused

# HTTP statuses that another try will not change.
FINAL = (400, 401, 403, 404)


@dataclass(frozen=True)
class Hub:
    """A Hub: the URL of its endpoint, and the token to ask it with; None asks without an account."""

    endpoint: str
    token: str | None = None


def download(hub: Hub, directory: str, repo: str, commit: str, name: str) -> str:
    """Download one file of a repository at a commit; return its path, below `directory`/fetch.

    The client checks its size alone. Raise what the client raises: see `explain`.
    """
    from huggingface_hub import hf_hub_download

    folder = os.path.join(directory, "fetch", repo.replace("/", "--"), commit)
    return str(
        hf_hub_download(repo, name, revision=commit, local_dir=folder, endpoint=hub.endpoint, token=hub.token or False)
    )


def explain(error: BaseException, hub: Hub, repo: str, revision: str) -> Refused | None:
    """What an error of the client means, with the page to open; None where another try may help."""
    from huggingface_hub import errors

    page = f"{hub.endpoint}/{repo}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        if not hub.token:
            fix = f"open {page}, then export HF_TOKEN"
            return Refused(repo, "is gated, and there is no token", "a token", "none", fix)
        found, fix = f"not for {account(hub)}", f"open {page} and ask for access"
        return Refused(repo, "is gated", "access granted", found, fix)
    if isinstance(error, errors.RevisionNotFoundError):
        return Refused(repo, "has no such revision", revision, "404", f"open {page}/commits/main, then tasks/lock.py")
    if isinstance(error, errors.RepositoryNotFoundError):
        whose = account(hub) if hub.token else "nobody (no token)"
        return Refused(repo, "does not exist, or is private", "a repository", f"404 for {whose}", f"open {page}")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        what = "lacks a file at the locked commit"
        return Refused(repo, what, str(error).splitlines()[-1][:200], "404", "tasks/lock.py")
    if status == 401:
        return Refused(hub.endpoint, "refuses the token", "a valid token", "401", f"a new token at {page}")
    if status in FINAL:
        return Refused(repo, "is refused by the Hub", "200", str(status), f"open {page}")
    return None


def account(hub: Hub) -> str:
    """The name of the token's account; "this token" where the Hub does not say it."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi(endpoint=hub.endpoint, token=hub.token).whoami()["name"])
    except Exception:  # the name only helps the reader of the message
        return "this token"


def no_hub(error: BaseException, hub: Hub, repo: str, tries: int, fix: str) -> Refused:
    """The refusal after `tries` failed tries, with an error that `explain` does not know."""
    found = f"{brief(error)}, {tries} times"
    return Refused(hub.endpoint, "does not answer as a Hub does", repo, found, fix)


def brief(error: BaseException) -> str:
    """An error in one line of 160 characters at most."""
    return re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:160]
