"""The folder of the manifests of parts, until they are committed: on the local disk, and deleted at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from anyio import CancelScope, to_thread

from async_maps.errors import ManifestError
from async_maps.filesystems.temporary import is_left_over, unique_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_PREFIX = "async-maps-parts-"


@asynccontextmanager
async def manifests_folder() -> AsyncIterator[Path]:
    """Yield a new folder in TMPDIR, which is deleted at the end; delete those of killed processes before.

    Raises:
        ManifestError: no folder can be created.
    """
    folder = await to_thread.run_sync(_create)
    try:
        yield folder
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(_delete, folder)


def _create() -> Path:
    try:
        parent = tempfile.gettempdir()
        _sweep(parent)
        folder = Path(parent, f"{_PREFIX}{unique_text()}")
        folder.mkdir(0o700)
    except OSError as error:
        where = error.filename or "no folder"
        reason = error.strerror or str(error)
        raise ManifestError(
            f"the folder of the manifests of parts cannot be created ({where}): {reason}; set TMPDIR to a folder on a "
            "local disk with free space"
        ) from error
    return folder


def _sweep(parent: str) -> None:
    """Delete the folders that killed processes of this machine have left; those of others may be in use."""
    ours = f"{_PREFIX}{unique_text().partition('-')[0]}-"
    with suppress(OSError):
        for name in os.listdir(parent):
            if name.startswith(ours) and is_left_over(name.removeprefix(_PREFIX), os.path.join(parent, name)):
                _delete(Path(parent, name))


def _delete(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
