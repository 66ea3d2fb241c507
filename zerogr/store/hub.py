"""Data sets on the Hugging Face hub, as one more filesystem: `hf:owner/name[@revision][/folder]`.

That is short for fsspec's own `hf://datasets/owner/name[@revision]/folder`, which `huggingface_hub` serves: files are read
over HTTP, piece by piece, and nothing is downloaded as a whole. Cost: one request per process and data set to see that it
exists, one per listing, one per 5 MB that are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import fsspec

from zerogr.errors import UserError

SCHEME = "hf:"


def is_hub(uri: str) -> bool:
    """Whether `uri` names something on the hub."""
    return uri.startswith(SCHEME)


def url_of(uri: str) -> str:
    """Returns fsspec's URL of the place."""
    return uri if uri.startswith("hf://") else f"hf://datasets/{uri.removeprefix(SCHEME)}"


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns the filesystem that serves `uri`, and its path there.

    Raises:
        UserError: The hub cannot be reached, or there is no such data set or revision.
    """
    with in_one_sentence(uri):
        try:
            fs, path = fsspec.core.url_to_fs(url_of(uri))
            # Asks the hub, once: `exists` and `isdir` would answer no where there is no connection.
            fs.resolve_path(path)
        except FileNotFoundError as error:
            raise UserError(
                f"there is no '{uri}' on the Hugging Face hub, or not for you; check owner, name and revision, and set "
                "HF_TOKEN if it is private"
            ) from error
        except (ValueError, NotImplementedError) as error:
            raise UserError(
                f"'{uri}' names no data set; write hf:owner/name, hf:owner/name@revision, or a folder or file below it, "
                "hf:owner/name/folder"
            ) from error
    return fs, path


@contextmanager
def in_one_sentence(uri: str) -> Iterator[None]:
    """Turns what goes wrong between us and the hub in the block into a UserError; does nothing for other places."""
    if not is_hub(uri):
        yield
        return
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        yield
    except HfHubHTTPError as error:
        raise UserError(
            f"the Hugging Face hub refuses '{uri}' ({_first_line(error)}); where it asks for consent, give it on its page "
            "there and set HF_TOKEN"
        ) from error
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"'{uri}' is on the Hugging Face hub, which cannot be reached from here ({_first_line(error)}); connect this "
            "machine, or copy the data set to it and name its folder"
        ) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
