"""Names and keys. A map's name becomes a key in a store and a path on a disk, and must stay under its prefix."""

from __future__ import annotations

import re
from string import Formatter

from async_maps.errors import InputValidationError, SettingsError

MAX_KEY_BYTES = 1024
"""S3's own limit of a key's length in UTF-8 (Amazon S3 user guide, "Naming Amazon S3 objects")."""

_FIELDS = {"name": "", "digest": r"(\.(1[6-9]|[2-9]\d))?", "stem": "", "parent": "", "index": r"(0\d{1,2})?"}
"""The fields of a key, and the format specifications that each may have."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_name(name: str) -> None:
    r"""Refuse a name that cannot be a key, or that could leave its prefix.

    Raises:
        InputValidationError: it is empty, absolute, has an empty, ``.`` or ``..`` part, a control character, or
            characters that are not UTF-8 (undecodable bytes of a file name).
    """
    if not isinstance(name, str):
        raise InputValidationError(f"a name must be text; found {type(name).__name__}")
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


class KeyTemplate:
    """The pattern of the keys of overlays, such as ``{name}.png``.

    ``{name}`` is the map's name, ``{parent}`` and ``{stem}`` are its parts before and after its last slash, ``{index}``
    is its position in its source (``{index:06}`` pads it), ``{digest}`` is the SHA-256 of the PNG, in hexadecimal
    (``{digest:.16}`` for the first 16 digits).

    Raises:
        SettingsError: it has other fields, or none that distinguishes maps, or cannot be a key.
    """

    def __init__(self, template: str) -> None:
        self._template = template
        try:
            parts = [(field, spec, conversion) for _, field, spec, conversion in Formatter().parse(template)]
        except ValueError as error:
            raise SettingsError(f"key {template!r}: {error}") from error
        specs = [(field, spec or "") for field, spec, _ in parts if field is not None]
        fields = {field for field, _ in specs}
        if unknown := fields - _FIELDS.keys():
            raise SettingsError(f"key {template!r}: unknown field {{{min(unknown)}}}; known: {', '.join(_FIELDS)}")
        if any(conversion for *_, conversion in parts) or not all(
            re.fullmatch(_FIELDS[field], spec) for field, spec in specs
        ):
            raise SettingsError(
                f"key {template!r}: only {{index:06}}, a width, and {{digest:.16}}, 16 digits or more, can be formatted"
            )
        if not fields & {"name", "stem", "index", "digest"}:
            raise SettingsError(f"key {template!r} gives all maps of a folder the same key: add {{name}} or {{stem}}")
        self.needs_index: bool = "index" in fields
        self.needs_digest: bool = "digest" in fields
        self.may_collide: bool = not self.needs_digest and [field for field, *_ in parts if field] != ["name"]
        """Whether two names may give one key to different bytes."""
        try:
            for name in ("stem", "parent/stem"):
                self.key("", name)
        except InputValidationError as error:
            raise SettingsError(f"key {template!r}: {error}") from error

    def __str__(self) -> str:
        return self._template

    def key(self, prefix: str, name: str, index: int = 0, digest: str = "0" * 64) -> str:
        """The key of a map's overlay, under the prefix if there is one.

        Raises:
            InputValidationError: it would be longer than S3 allows, or leave its prefix.
        """
        parent, _, stem = name.rpartition("/")
        key = self._template.format(name=name, parent=parent, stem=stem, index=index, digest=digest)
        # {parent}/{stem} of a map that lies in no folder.
        key = "/".join(part for part in key.split("/") if part)
        check_name(key)
        key = f"{prefix}/{key}" if prefix else key
        size = len(key.encode())
        if size > MAX_KEY_BYTES:
            raise InputValidationError(
                f"the key would be {size:,} bytes long; S3 allows {MAX_KEY_BYTES:,}: {key[:80]}..."
            )
        return key


def printable(text: str) -> str:
    """The text as it is where it can be printed, stored and sent; else with escapes."""
    if text.isprintable():
        return text
    return text.encode("unicode_escape", "surrogatepass").decode()
