"""What is done to folders of a disk without fsspec: it leaves out what it cannot list, and deletes nothing where the process'
own working folder has gone."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress

from zerogr.errors import Fault, UserError


def files_below(folder: str) -> dict[str, int]:
    """Returns {path relative to `folder`: bytes} of every file below it; empty if there is no such folder.

    Links are followed; one that leads nowhere, and a file that vanishes meanwhile, are left out.

    Raises:
        UserError: A folder may not be read.
        Fault: One cannot be read for another reason.
    """
    found = {}
    for place, _, names in os.walk(folder, followlinks=True, onerror=_refuse):
        for name in names:
            path = os.path.join(place, name)
            with suppress(FileNotFoundError):
                found[path[len(folder) :].lstrip("/")] = os.stat(path).st_size
    return found


def remove(path: str) -> None:
    """Removes a file, a link or a folder with all that is in it; nothing happens if there is none."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.remove(path)


def _refuse(error: OSError) -> None:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return  # there is none, or no longer
    if isinstance(error, PermissionError):
        raise UserError(f"the folder '{error.filename}' may not be read; give yourself the right to, or move it away")
    raise Fault(f"the folder '{error.filename}' cannot be read: {str(error.strerror).lower()}") from error
