"""What a map may be called. A name becomes a key in a store and a path on a disk, and must stay under its prefix."""

from __future__ import annotations

import re

from async_maps.errors import InputValidationError

MAX_KEY_BYTES = 1024
"""S3's own limit of a key's length in UTF-8 (Amazon S3 user guide, "Naming Amazon S3 objects")."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_name(name: str) -> None:
    r"""Refuse a name that cannot be a key, or that could leave its prefix.

    Raises:
        InputValidationError: it is empty, absolute, has an empty, ``.`` or ``..`` part, a control character, or
            characters that are not UTF-8 (undecodable bytes of a file name).
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputValidationError(f"the name {printable(name)} is not UTF-8: rename the file") from None
    if _CONTROL.search(name):
        raise InputValidationError(f"the name {printable(name)} has a control character: rename the file")
    if any(part in {"", ".", ".."} for part in name.split("/")):
        raise InputValidationError(
            f"the name {printable(name)} is empty, starts or ends with a slash, or has an empty, '.' or '..' part"
        )


def make_key(prefix: str, name: str) -> str:
    """The key of a map's overlay: ``{prefix}/{name}.png``, or ``{name}.png`` without a prefix.

    Raises:
        InputValidationError: it would be longer than S3 allows.
    """
    key = f"{prefix}/{name}.png" if prefix else f"{name}.png"
    size = len(key.encode())
    if size > MAX_KEY_BYTES:
        raise InputValidationError(f"the key would be {size:,} bytes long; S3 allows {MAX_KEY_BYTES:,}: {key[:80]}...")
    return key


def printable(text: str) -> str:
    """The text as it is where it can be printed, stored and sent; else with escapes."""
    if text.isprintable():
        return text
    return text.encode("unicode_escape", "surrogatepass").decode()
