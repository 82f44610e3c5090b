"""The base of the settings: read-only, with errors in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from async_maps.errors import SettingsError
from async_maps.settings.problems import describe_invalid, names_in


class Model(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True):
    """A group of settings; raises SettingsError if a value is not allowed."""

    # Type checkers still derive the keywords of subclasses from their fields.
    def __init__(self, /, **values: object) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(describe_invalid(error, names_in(type(self)))) from error
        except TypeError as error:  # names that are not strings
            raise SettingsError(str(error)) from error


_Given = TypeVar("_Given")
_Kept = TypeVar("_Kept")


class Converted(Generic[_Given, _Kept]):
    """The type of a field that accepts more types than it stores."""

    if TYPE_CHECKING:  # type checkers use the setter's type for the keyword

        def __get__(self, settings: object, owner: type | None = None, /) -> _Kept: ...

        def __set__(self, settings: object, value: _Given, /) -> None: ...

    else:  # pydantic and the command line use the stored type

        def __class_getitem__(cls, types):
            return types[1]
