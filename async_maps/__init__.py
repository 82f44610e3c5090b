"""Turns activation maps into PNG overlays for Kolena in an object store, with a locator for each.

The public names are listed in ``__init__.pyi``, which type checkers and this module read. Each is imported at its first
use, to keep the start of worker processes and of ``--help`` fast.
"""

from importlib import import_module

with open(f"{__path__[0]}/__init__.pyi", encoding="utf-8") as _stub:
    _MODULES = {words[3]: words[1] for words in map(str.split, _stub) if words[:1] == ["from"]}

__all__ = list(_MODULES)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("async-maps")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
