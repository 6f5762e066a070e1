"""The Hugging Face hub: the commit of a data set, its files, and what a refusal means."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tinyllm.errors import UserError
from tinyllm.utils.deadline import within
from tinyllm.utils.late_imports import library

DEADLINE = 5.0
"""Seconds within which the hub must answer the first question."""
INSTALL = "pip install 'tinyllm[data]'"
PAGE = "https://huggingface.co/datasets/"


class NoAnswerError(Exception):
    """The hub did not answer; the message says why."""


def hub() -> Any:
    """The library ``huggingface_hub``. Raises UserError if the extra ``data`` is not installed."""
    return library("huggingface_hub", hint=INSTALL, key="dataset")


def datasets_library() -> Any:
    """The library ``datasets``, without its progress bars, whose threads would outlive the download.

    Raises:
        UserError: the extra ``data`` is not installed.
    """
    library("pyarrow", hint=INSTALL, key="dataset")
    datasets = library("datasets", hint=INSTALL, key="dataset")
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    hub().utils.disable_progress_bars()
    hub().utils.logging.set_verbosity(hub().utils.logging.CRITICAL)  # what it warns of ends in one line of ours
    return datasets


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids to ask the hub."""
    return bool(hub().constants.is_offline_mode())


def commit_of(name: str, revision: str | None) -> str:
    """The commit that a revision of a data set is now.

    Raises:
        NoAnswerError: the hub is out of reach.
        UserError: there is no such data set or revision, or no access to it.
    """
    if is_offline():
        raise NoAnswerError("HF_HUB_OFFLINE is set")
    with refusals(name, revision):
        info = within(DEADLINE, lambda: hub().HfApi().dataset_info(name, revision=revision, timeout=DEADLINE))
    return str(info.sha)


def download(name: str, files: Sequence[str], commit: str) -> list[str]:
    """The paths of files of a data set in the cache of the hub's library; what is there already is not fetched again,
    and a file that was begun is continued.

    Raises:
        UserError: the download broke, or the disk is too small.
    """
    paths = []
    for file in files:
        with refusals(name, commit), broken_download(name):
            paths.append(hub().hf_hub_download(name, file, repo_type="dataset", revision=commit))
    return paths


def in_cache(name: str, file: str, commit: str) -> str | None:
    """The path of a file in the cache of the hub's library, or None."""
    path = hub().try_to_load_from_cache(name, file, repo_type="dataset", revision=commit)
    return path if isinstance(path, str) else None


@contextmanager
def broken_download(name: str) -> Iterator[None]:
    """Turn failures of the network or the disk during a download into one line."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:  # those of httpx and of the hub's library are OSErrors, or chained to one
        raise _broken(name, error) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "huggingface_hub", "fsspec"):
            raise
        raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> UserError:
    hint = f"{_first_line(error)}; run the command again, it goes on where the download stopped"
    return UserError("the download broke off", key="dataset.name", value=name, hint=hint)


@contextmanager
def refusals(name: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub answers into one line: unknown, no access; and no answer into :class:`NoAnswerError`."""
    errors = hub().errors
    try:
        yield
    except errors.RevisionNotFoundError as error:
        hint = "a branch, a tag or a commit of the data set; null: the newest"
        raise UserError("no such revision", key="dataset.revision", value=revision, hint=hint) from error
    except errors.EntryNotFoundError:
        raise
    except (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.HfHubHTTPError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError) or status in (401, 403):
            hint = f"if it exists, accept its terms at {PAGE}{name} and set HF_TOKEN to a token of yours"
            raise UserError(
                "the hub gives no access to the data set", key="dataset.name", value=name, hint=hint
            ) from error
        if status == 404 or isinstance(error, errors.RepositoryNotFoundError):
            raise UserError(
                "the hub has no such data set", key="dataset.name", value=name, hint=_similar(name)
            ) from error
        raise NoAnswerError(_first_line(error)) from error
    except errors.HFValidationError as error:
        raise UserError("not the name of a data set", key="dataset.name", value=name, hint="user/set") from error
    except errors.OfflineModeIsEnabled as error:
        raise NoAnswerError("HF_HUB_OFFLINE is set") from error
    except (TimeoutError, ConnectionError) as error:
        raise NoAnswerError(_first_line(error)) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore"):
            raise
        raise NoAnswerError(_first_line(error)) from error


def _similar(name: str) -> str:
    """What the hub has under a similar name, if it says so soon."""
    word = name.rpartition("/")[2]
    try:
        found = within(DEADLINE / 4, lambda: [one.id for one in hub().HfApi().list_datasets(search=word, limit=5)])
    except Exception:  # a suggestion is not worth another error
        found = []
    return f"did you mean {', '.join(found)}?" if found else f"search for it at {PAGE.rstrip('/')}"


def _first_line(error: BaseException) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)
