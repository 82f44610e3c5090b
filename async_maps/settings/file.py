"""Settings from a TOML file."""

from __future__ import annotations

import os
import stat
import tomllib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from typing import TYPE_CHECKING

from async_maps.errors import SettingsError
from async_maps.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

_MAX_FILE_BYTES = 2**20


def load_settings(path: str | Path) -> Settings:
    """Load settings from a TOML file.

    Args:
        path: a file whose keys are the names of settings; ``configs/default.toml`` explains each. It is UTF-8, or
            UTF-16 with a byte order mark, as editors of Windows write it.

    Returns:
        The settings; those that are not in the file have their defaults.

    Raises:
        SettingsError: the file cannot be read or is not TOML, a key is not a setting, or a value is not allowed.
    """
    try:
        with open(path, "rb", opener=_open_file) as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise SettingsError(f"expected a file of settings, found more than {_MAX_FILE_BYTES:,} bytes")
        encoding = "utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"
        return Settings(**tomllib.loads(content.decode(encoding)))
    except RecursionError:
        raise SettingsError(f"{path} is not a file of settings: its values are nested too deeply") from None
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error
    except ValueError as error:  # also of an integer with too many digits
        raise SettingsError(f"{path} is not TOML: {error}") from error


def _open_file(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # open() has words for a folder
        return descriptor
    os.close(descriptor)
    raise SettingsError(f"expected a file of settings, found a {'pipe' if stat.S_ISFIFO(mode) else 'device'}")
