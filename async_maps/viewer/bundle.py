"""Joins the modules of the page into one classic script, which also runs from a disk and inside a notebook."""

from __future__ import annotations

import re
from importlib.resources import files

_IMPORT = re.compile(r'^import \{ (.*?) \} from "\./([a-z]+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const) (\w+))", re.MULTILINE)
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}


def page_files() -> dict[str, bytes]:
    """Return the files of the page by name."""
    folder = files("async_maps.viewer") / "page"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.endswith(tuple(TYPES))}


def offline_script() -> str:
    """Return all modules as one script that asks ``window.ASYNC_MAPS`` in place of a server."""
    modules = {name: data.decode() for name, data in page_files().items() if name.endswith(".js")}
    done: dict[str, str] = {}

    def add(name: str) -> None:
        # The two modules that answer questions have one interface.
        text = modules["offline.js" if name == "source" else f"{name}.js"]
        for _, needed in _IMPORT.findall(text):
            if needed not in done:
                add(needed)
        names = ", ".join(_EXPORT.findall(text))
        body = _EXPORT.sub("", _IMPORT.sub(r"const { \1 } = of_\2;\n", text))
        done[name] = f"const of_{name} = (() => {{\n{body}return {{ {names} }};\n}})();\n"

    add("main")
    return "".join(['"use strict";\n(() => {\n', *done.values(), "})();\n"])
