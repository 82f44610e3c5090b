"""Names and keys. A map's name becomes the key of an object or a path on disk, and must stay under its prefix."""

from __future__ import annotations

import os
import re
from string import Formatter

from async_maps.errors import InputValidationError, SettingsError

MAX_KEY_BYTES = 1024
"""S3's limit on the length of a key in UTF-8 (Amazon S3 user guide, "Naming Amazon S3 objects")."""

_FIELDS = {"name": "", "digest": r"(\.(1[6-9]|[2-9]\d))?", "stem": "", "parent": "", "index": r"(0\d{1,2})?"}
"""The fields of a key template, with the pattern of each field's format specification."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_name(name: str) -> None:
    """Refuse a name that cannot be a key, or that could leave its prefix.

    Raises:
        InputValidationError: the name is not a string or not UTF-8, is empty or absolute, or has an empty, ``.`` or
            ``..`` part or a control character.
    """
    if not isinstance(name, str):
        raise InputValidationError(f"a name must be a string; found {type(name).__name__}{_as_string(name)}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputValidationError(f"the name {printable(name)} is not UTF-8: rename the file") from None
    if _CONTROL.search(name):
        raise InputValidationError(f"the name {printable(name)} has a control character: rename the file")
    for part in name.split("/"):
        if part in {"", ".", ".."}:
            problem = f"{part!r} is not allowed" if part else "empty parts are not allowed"
            raise InputValidationError(f"the name {name!r}: {problem}; use a relative path such as 'folder/name'")


def _as_string(name: object) -> str:
    """Return how to pass what is no string as a name."""
    if isinstance(name, tuple | list):
        return ": if these are the names of a batch, pass each pair of zip(names, arrays)"
    if len(getattr(name, "shape", ())) >= 2:
        return ": pass (name, array), in this order"
    return ": pass str(name)" if isinstance(name, int | os.PathLike) else ""


class KeyTemplate:
    """The pattern of the keys of overlays, such as ``{name}.png``.

    ``{name}`` is the map's name; ``{parent}`` and ``{stem}`` are the parts before and after its last slash.
    ``{index}`` is the map's position in the source, from 0; ``{index:06}`` pads it with zeros. ``{digest}`` is the
    SHA-256 of the PNG in hexadecimal; ``{digest:.16}`` is its first 16 digits.

    Raises:
        SettingsError: the template has an unknown field, has no field that distinguishes maps, or cannot be a key.
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
                f"key {template!r}: only {{index}} can have a width ({{index:06}}), and only {{digest}} a precision "
                "of at least 16 ({digest:.16})"
            )
        if not fields & {"name", "stem", "index", "digest"}:
            raise SettingsError(f"key {template!r} gives all maps of a folder the same key: add {{name}} or {{stem}}")
        self.needs_index: bool = "index" in fields
        self.needs_digest: bool = "digest" in fields
        self.is_number: bool = self.needs_index and not fields & {"name", "stem", "digest"}
        """Whether only the position of a map tells its key from those of other maps."""
        self.may_collide: bool = not self.needs_digest and [field for field, *_ in parts if field] != ["name"]
        """Whether two names may get the same key with different bytes."""
        try:
            for name in ("stem", "parent/stem"):
                self.key("", name)
        except InputValidationError as error:
            raise SettingsError(f"key {template!r}: {error}") from error

    def __str__(self) -> str:
        return self._template

    def key(self, prefix: str, name: str, index: int = 0, digest: str = "0" * 64) -> str:
        """Return the key of a map's overlay, below the prefix if there is one.

        Raises:
            InputValidationError: the key is longer than S3 allows, or would leave its prefix.
        """
        parent, _, stem = name.rpartition("/")
        key = self._template.format(name=name, parent=parent, stem=stem, index=index, digest=digest)
        # {parent} is empty if the map is in no folder.
        key = "/".join(part for part in key.split("/") if part)
        check_name(key)
        key = f"{prefix}/{key}" if prefix else key
        size = len(key.encode())
        if size > MAX_KEY_BYTES:
            raise InputValidationError(
                f"the key is {size:,} bytes long, and S3 allows {MAX_KEY_BYTES:,}; use a shorter name: {key[:80]}..."
            )
        return key


def printable(text: str) -> str:
    """Return the text with escapes for its unprintable characters; a printable text is returned unchanged."""
    if text.isprintable():
        return text
    return text.encode("unicode_escape", "surrogatepass").decode()
