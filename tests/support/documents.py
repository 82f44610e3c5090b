"""The documentation: its pages, their blocks of code, and the commands in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel

from async_maps.cli.commands import app
from async_maps.settings import Settings
from async_maps.sources import STDIN_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent


def _pages(*patterns: str) -> list[str]:
    found = (page.relative_to(ROOT).as_posix() for pattern in patterns for page in ROOT.glob(pattern))
    return sorted(page for page in found if not page.startswith(".pytest_cache/"))


READMES = _pages("README.md", "*/README.md", "async_maps/*/README.md")
PAGES = _pages("*.md", ".github/*.md", "*/README.md", "async_maps/*/README.md")
_BLOCK = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMANDS = ("run", "plan", "commit", "status", "export", "verify", "view", "doctor", "demo")


class Command(NamedTuple):
    """A command of a shell: the variables set before it, and its words."""

    environment: dict[str, str]
    words: list[str]

    @property
    def is_ours(self) -> bool:
        """Whether it is ``async-maps``."""
        return self.words[0] == "async-maps" and "&&" not in self.words

    @property
    def line(self) -> str:
        """The words as one line."""
        return shlex.join(self.words)


def read(page: str) -> str:
    """The text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def code(page: str) -> list[tuple[str, str]]:
    """The blocks of a page, each with its language."""
    return _BLOCK.findall(read(page))


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a page in a language."""
    return [text for found, text in code(page) if found == language]


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = _BLOCK.sub("", read(page))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: str) -> list[str]:
    """The targets of a page's links and images."""
    return re.findall(r"\]\(([^)\s]+)\)", _BLOCK.sub("", read(page)))


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table of a page whose head begins with a heading; cells without backticks."""
    text = read(page)
    assert f"| {heading} |" in text, heading
    lines = text[text.index(f"| {heading} |") :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.replace("`", ""))[1:-1]] for line in lines[2:]]


def commands(text: str) -> Iterator[Command]:
    """The commands of a shell's text, one a line; comments and empty lines are left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        environment = {}
        while words and (found := re.fullmatch(r"(\w+)=(.*)", words[0])):
            environment[found[1]] = found[2]
            words.pop(0)
        if words:
            yield Command(environment, words)


def ours_within(words: list[str]) -> Iterator[list[str]]:
    """The arguments of each ``async-maps`` among words, which may be a path or an image, up to a redirection."""
    for index, word in enumerate(words[:-1]):
        if word.rpartition("/")[2] == "async-maps" and words[index + 1] in _COMMANDS:
            arguments = words[index + 1 :]
            end = next((i for i, text in enumerate(arguments) if re.match(r"\d?[<>|&]", text)), len(arguments))
            yield arguments[:end]


def check_command(arguments: list[str]) -> None:
    """Parse arguments as the command does, and run nothing; an error of the parser if it refuses them."""
    app.parse_args([STDIN_FILE if text == "-" else text for text in arguments], exit_on_error=False, print_error=False)


def defaults(model: type[BaseModel] = Settings, prefix: str = "") -> dict[str, object]:
    """Every setting, by its key in TOML, and its default."""
    found: dict[str, object] = {}
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            found |= defaults(type(default), f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = default
    return found


def variable(key: str) -> str:
    """The environment variable of a setting."""
    return f"ASYNC_MAPS_{key.replace('.', '_').upper()}"


def unknown_variables(text: str) -> set[str]:
    """Variables of ours in a text that set nothing."""
    known = {"ASYNC_MAPS_MANIFEST", *map(variable, defaults())}
    found = set(re.findall(r"\bASYNC_MAPS_\w+", text))
    return {
        name for name in found - known if not name.startswith(("ASYNC_MAPS_S3_METADATA_", "ASYNC_MAPS_S3_TAGGING_"))
    }
