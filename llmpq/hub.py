"""Models by their names on the Hugging Face Hub, through huggingface_hub with its cache and its environment variables.

Of a model only the small files are fetched here, those that say what it is and how its text becomes tokens. Weights are
fetched by whoever needs them (`stage_server.hub_checkpoint`).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from llmpq.errors import InvalidInputError, MeshError, NotFoundError, UnavailableError

_NAME = re.compile(r"(?P<repo>\w[\w.-]{0,95}/\w[\w.-]{0,95})(@(?P<revision>[\w./-]{1,255}))?", re.ASCII)
#: Answers that will be the same next time: errors of the client, but for "too slow" and "too many requests".
_REFUSALS = frozenset(range(400, 500)) - {408, 429}
_COMMIT = re.compile(r"[0-9a-f]{40}")
#: Configuration, tokenizer, chat template, and the index of the weights; nothing in folders, which hold other formats.
_SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True)
class HubModel:
    """A model on the Hub.

    Attributes:
        repo: `org/name`.
        revision: Branch, tag or commit; empty: the default branch.
    """

    repo: str
    revision: str = ""

    @classmethod
    def parse(cls, model: str) -> "HubModel | None":
        """What `org/name` or `org/name@revision` says; None if it is not of this form, as absolute paths are not."""
        match = _NAME.fullmatch(model)
        return cls(match["repo"], match["revision"] or "") if match else None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return _COMMIT.fullmatch(self.revision) is not None


def fetch_small_files(model: HubModel) -> Path:
    """The directory of a model in the cache, with all of its small files; its name is the commit.

    A commit is looked up once in the life of a process. Other revisions are asked for each time, because they move.

    Raises:
        NotFoundError: There is no such model or revision, one may not see it, or it is neither cached nor reachable
            (HF_HUB_OFFLINE).
        UnavailableError: The Hub does not answer, and the model is not cached.
    """
    return _fetch_commit(model) if model.is_pinned else _fetch(model)


@lru_cache
def _fetch_commit(model: HubModel) -> Path:
    return _fetch(model)


def _fetch(model: HubModel) -> Path:
    from huggingface_hub import constants, snapshot_download  # noqa: PLC0415 most processes never need it
    from huggingface_hub.utils.tqdm import disable_progress_bars  # noqa: PLC0415 as above

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()  # among the lines of a log they are noise
    with hub_errors(model):
        directory = snapshot_download(
            model.repo, revision=model.revision or None, allow_patterns=[*_SMALL_FILES], ignore_patterns=["*/*"]
        )
    return Path(directory)


@contextmanager
def hub_errors(model: HubModel, file_name: str = "") -> Iterator[None]:
    """Turns what huggingface_hub raises into errors that name the model, the file and the way out.

    Its own texts are left out, and its exceptions are not chained: some of them quote the headers of a request, and so
    the token.
    """
    try:
        yield
    except MeshError:
        raise
    except Exception as error:  # noqa: BLE001 of three libraries, and of the network
        raise _translated(error, model, file_name) from None


def _translated(error: Exception, model: HubModel, file_name: str) -> MeshError:
    from huggingface_hub import constants  # noqa: PLC0415 as above

    what = _what_is_missing(error, model, file_name)
    if what:
        return NotFoundError(f"Model '{model}': {what}", reason="MODEL_NOT_FOUND", subject=str(model))
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in _REFUSALS:
        message = f"Model '{model}': {constants.ENDPOINT} refuses with status {status}."
        return InvalidInputError(message, subject="model")
    why = f"status {status}" if status is not None else type(error).__name__
    return UnavailableError(
        f"Model '{model}' is no directory on this host, it is not in the cache at {constants.HF_HUB_CACHE}, or not all "
        f"of it, and {constants.ENDPOINT} cannot be reached ({why}). Check name and connection, or name a directory.",
        subject=str(model),
    )


def _what_is_missing(error: Exception, model: HubModel, file_name: str) -> str:
    """What is not there, and the way out; empty if trying again may help."""
    from huggingface_hub import constants, errors, get_token  # noqa: PLC0415 as above

    if constants.is_offline_mode():
        return (
            f"it is no directory on this host, it is not in the cache at {constants.HF_HUB_CACHE}, or not all of it, "
            f"and HF_HUB_OFFLINE is set. Unset it, fill the cache with `hf download {model.repo}` on a host with a "
            "connection, or name a directory."
        )
    seen_with = "the token of this host" if get_token() else "no token"
    missing = {
        errors.GatedRepoError: f"access to it is gated. Accept its terms at {constants.ENDPOINT} and set HF_TOKEN.",
        errors.RepositoryNotFoundError: f"it is no directory on this host, and {constants.ENDPOINT} shows no such "
        f"model to who has {seen_with}. Check the name, or set HF_TOKEN.",
        errors.RevisionNotFoundError: f"it has no revision '{model.revision}'.",
        errors.HFValidationError: "this is neither a directory, nor a .gguf file, nor a name on the Hub.",
        errors.LocalEntryNotFoundError: "",  # for want of a connection
        errors.EntryNotFoundError: f"it has no {file_name or 'such file'}.",
        FileNotFoundError: f"it has no {file_name or 'such file'}.",
    }
    return next((text for kind, text in missing.items() if isinstance(error, kind)), "")
