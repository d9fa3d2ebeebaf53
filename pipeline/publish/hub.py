"""A folder put on the hub by its own client: resumable, and private unless asked otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from pipeline.errors import UserError


def upload(folder: Path, repository: str, kind: str, public: bool) -> None:
    """Upload a folder as a repository of `kind`, dataset or model; files that are there already are not sent again.

    A repository that is there keeps its visibility. Raises UserError where the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    # of whichever HTTP library the client uses; of one file, around the true cause; of an answer that is no JSON
    errors = cast("tuple[type[Exception], ...]", (*HfHubHTTPError.__bases__, RuntimeError, ValueError))
    try:
        api.create_repo(repository, repo_type=kind, private=not public, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository, repo_type=kind, folder_path=folder, commit_message="Published by Shardmill"
        )
    except errors as error:
        raise UserError(f"--push {repository}: {why(error)}") from error
    print(f"{folder} is {done.repo_url}")


def why(error: BaseException) -> str:
    """Return what the hub answered, and what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    found: BaseException | None = error
    while found is not None and not isinstance(found, HfHubHTTPError):
        found = found.__cause__
    if found is None:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        return f"the hub cannot be reached, or understood ({said}); give the same command again"
    status = found.response.status_code
    may_not = status in (401, 403)
    mend = "log in with a token that may write: hf auth login" if may_not else "give the same command again"
    return f"the hub answered {status}; {mend}"
