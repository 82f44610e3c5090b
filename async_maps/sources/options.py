"""Which parts of a source are maps: channels, a column of a table, patterns of names."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from async_maps.filesystems.filesystem import Filesystems

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from async_maps.render.channels import Channels
    from async_maps.settings import S3Settings, Settings
    from async_maps.sources.activation_map import ActivationMap
    from async_maps.sources.coverage import Coverage
    from async_maps.sources.isolation import DecoderProcess
    from async_maps.sources.layouts import Questions
    from async_maps.sources.whole_objects import ReadAhead

    Known: TypeAlias = Callable[[Sequence[ActivationMap]], Collection[str]]
    """Returns the sources of those maps that are the only map of their unchanged file, according to an earlier run."""

    PassOver: TypeAlias = Callable[[str], object]
    """Called for each file or array that is no map, with the suffix of the file or a text such as "arrays of text"."""

LEFT_OUT = "maps left out by include or exclude"


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """The settings that decide which parts of a source are maps; each attribute is as in ``Settings``.

    ``destination`` is the start of all locators, because overlays are never maps; empty if they go nowhere.
    ``span`` has the indices of the maps of a stack: the first, and that after the last one, or None for all.
    """

    channels: Channels = "none"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    column: str | None = None
    destination: str = ""
    span: tuple[int, int | None] = (0, None)

    @classmethod
    def of(cls, settings: Settings, destination: str = "") -> SourceOptions:
        """Return the options of settings, for a run into a destination."""
        return cls(settings.channels, settings.include, settings.exclude, settings.column, destination)

    def wants(self, name: str, *files: str) -> bool:
        """Whether a map is neither left out by ``exclude`` nor missing in ``include``.

        ``files`` are the paths below the source, with the suffix, of its file and of its member in an archive.
        """
        included = not self.include or any(_matches(self.include, name, file) for file in files or ("",))
        return included and not self.leaves_out(name, *files)

    def names_file(self, name: str, file: str) -> bool:
        """Whether ``include`` names a file by its suffix: ``*.png`` does, but ``*`` and ``val/*`` do not."""
        return any(_matches([pattern], name, file) and not _matches([pattern], name, "") for pattern in self.include)

    def mark(self, fingerprint: str | None) -> str | None:
        """Return the fingerprint of a file, marked if channels are reduced, because its maps are others then."""
        return fingerprint if fingerprint is None or self.channels == "none" else f"{fingerprint} channels"

    def filter(self, pass_over: PassOver) -> Callable[[str], bool] | None:
        """Return a function that tells which names are wanted, and counts the others; None if all are."""
        if not self.include and not self.exclude:
            return None

        def wanted(name: str) -> bool:
            if self.wants(name):
                return True
            pass_over(LEFT_OUT)
            return False

        return wanted

    def leaves_out(self, name: str, *files: str) -> bool:
        """Whether ``exclude`` leaves out a map, or a file with all of its maps."""
        return bool(self.exclude) and any(_matches(self.exclude, name, file) for file in files or ("",))


def shown_passed_over(counts: Mapping[str, int]) -> str:
    """Return the counts of what was passed over, by suffix or text, as a line for people."""
    found = sorted(counts.items(), key=lambda item: (" " in item[0], -item[1], not item[0], item[0]))
    shown = (
        f"{what}: {count:,}" if " " in what else f"{count:,} {what or 'without a suffix'}" for what, count in found
    )
    return f"passed over: {', '.join(shown)}"


class Scan(NamedTuple):
    """How a source is listed.

    Attributes:
        known: decides which files are a single map and need not be opened; None to open all.
        pass_over: called for each file or array that is no map, in the thread that iterates the source.
        options: which parts of the source are maps.
        questions: asks about arrays that are probably other maps than their shape says; None to ask nothing.
        coverage: filled with what is read; None if nobody asks.
        decoder: the process that lists files that libraries decode; None to list them in this process.
        ahead: how much of a source in a bucket is read ahead while it is listed; None to read only what the listing
            needs.
        filesystems: the caller's, who closes them to end the requests of a listing that is abandoned; None for others.
    """

    known: Known | None = None
    pass_over: PassOver = lambda _: None
    options: SourceOptions = SourceOptions()
    questions: Questions | None = None
    coverage: Coverage | None = None
    decoder: DecoderProcess | None = None
    filesystems: Filesystems | None = None
    ahead: ReadAhead | None = None

    @contextmanager
    def opened(self, s3: S3Settings | None) -> Iterator[Filesystems]:
        """Give the caller's filesystems to the ``with`` block, or others with these settings, and close those."""
        if self.filesystems is not None:
            yield self.filesystems
        else:
            with Filesystems(s3) as filesystems:
                yield filesystems

    def begin(self, root: str, covers: Callable[[str], bool]) -> None:
        """Call :meth:`Coverage.begin`, if somebody asks for it."""
        if self.coverage is not None:
            self.coverage.begin(root, covers)

    def has_read(self, file: str, path: str, *, whole: bool = True) -> None:
        """Call :meth:`Coverage.has_read`, or with a file that could not be read :meth:`Coverage.could_not_read`."""
        if not whole:
            self.could_not_read(file)
        elif self.coverage is not None:
            self.coverage.has_read(file, path)

    def could_not_read(self, place: str) -> None:
        """Call :meth:`Coverage.could_not_read`, if somebody asks for it."""
        if self.coverage is not None:
            self.coverage.could_not_read(place)


def _matches(patterns: Iterable[str], name: str, file: str) -> bool:
    """Whether a pattern matches the name, a folder above it, the file, or, without a slash, any part of the name."""
    parts = name.split("/")
    candidates = ["/".join(parts[: count + 1]) for count in range(len(parts))] + ([file] if file else [])
    file_parts = file.split("/")
    for pattern in patterns:
        texts = candidates if "/" in pattern else [*candidates, *parts, *file_parts]
        if any(fnmatchcase(text, pattern) for text in texts if text):
            return True
    return False
