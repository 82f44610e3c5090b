"""What a run forgets at its end: rows whose map is no longer in the source, and with ``prune`` their overlays."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from async_maps.errors import ManifestError, SettingsError
from async_maps.filesystems.endpoints import Identity
from async_maps.filesystems.objects import Objects
from async_maps.manifest.manifest import Select
from async_maps.sources import place_of
from async_maps.sources.batches import check_limit
from async_maps.sources.options import SourceOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike

    from async_maps.manifest.manifest import Manifest, RepairMode
    from async_maps.manifest.stale import StaleRow
    from async_maps.report import Report
    from async_maps.settings import Settings
    from async_maps.sources.batches import AnySource
    from async_maps.sources.coverage import Coverage

Prune: TypeAlias = Literal["rows", "objects"]
"""What a run forgets of the maps that are no longer in the source: their rows, or their rows and overlays."""

_logger = logging.getLogger("async_maps")


@dataclass(frozen=True, slots=True)
class Selection:
    """What a run does, and what it forgets.

    Attributes:
        source: the source of the maps.
        manifest: the path of the manifest; None without one.
        mode: the maps to do.
        limit: the maximum number of maps; None for all.
        settings: the settings, whose ``include`` and ``exclude`` decide by name.
        prune: what to forget of maps that are gone; None to keep the rows of done maps.
        prune_all: whether more than half may go.
    """

    source: AnySource
    manifest: str | PathLike[str] | None
    mode: Select | RepairMode
    limit: int | None
    settings: Settings
    prune: Prune | None = None
    prune_all: bool = False

    @property
    def is_filtered(self) -> bool:
        """Whether names decide which maps are selected."""
        return bool(self.settings.include or self.settings.exclude)

    @property
    def is_whole(self) -> bool:
        """Whether the run lists all maps of its source."""
        return self.limit is None and not self.is_filtered

    def check(self, destination: object) -> None:
        """Check the choices before anything is opened.

        Raises:
            SettingsError: a value is not allowed, or this run cannot prune.
            ManifestError: failed maps are selected, and the manifest does not exist.
        """
        if self.mode not in get_args(Select):
            raise SettingsError(f"select: expected {', '.join(get_args(Select))}, found {self.mode!r}")
        check_limit(self.limit)
        if self.prune_all and self.prune is None:
            raise SettingsError("prune_all: choose with prune what to prune, rows or objects")
        if self.prune is not None:
            self._check_prune(destination)
        if self.mode == "failed":
            self._require_manifest()

    def _check_prune(self, destination: object) -> None:
        if self.prune not in get_args(Prune):
            raise SettingsError(f"prune: expected {', '.join(get_args(Prune))}, found {self.prune!r}")
        reason = ""
        if self.manifest is None:
            reason = "it needs a manifest"
        elif place_of(self.source) is None:
            reason = "the source must be a path, which a later run can list again"
        elif not self.is_whole or self.mode == "failed":
            reason = "it needs a whole run: leave out limit, include and exclude, and select changed or all maps"
        elif self.prune == "objects" and not _can_delete(destination):
            reason = "objects are deleted only in buckets and in folders: prune rows instead"
        if reason:
            raise SettingsError(f"prune: {reason}")

    def _require_manifest(self) -> None:
        if self.manifest is None:
            raise SettingsError("select: failed maps are known only from a manifest: give the one of an earlier run")
        if not os.path.exists(self.manifest):
            raise ManifestError(
                f"no such manifest: {self.manifest}: failed maps are known only from the manifest of an earlier run; "
                "correct its path"
            )


def _can_delete(destination: object) -> bool:
    return not hasattr(destination, "put") and not str(destination).startswith("memory:")


class Ending:
    """The end of a run that has listed and recorded all that it selects. Everything here blocks.

    A dry run only counts.
    """

    def __init__(self, manifest: Manifest, coverage: Coverage, selection: Selection, report: Report) -> None:
        self._manifest = manifest
        self._coverage = coverage
        self._selection = selection
        self._report = report
        self._stored: int | None = None

    def count_stored(self) -> None:
        """Count the overlays of the source before the run adds any; called with the first maps."""
        if self._selection.prune and self._stored is None:
            self._stored = self._manifest.stored()

    def steps(self) -> Iterator[None]:
        """Forget what is gone; yield between steps that may take long."""
        manifest, selection, coverage = self._manifest, self._selection, self._coverage
        manifest.note_listed([], coverage.take_read())
        if not selection.is_whole or coverage.unread:
            wants = SourceOptions.of(selection.settings).wants
            for rows in manifest.superseded():
                self._forget([row for row in rows if wants(row.name, row.path)])
                yield
            if selection.is_filtered and selection.limit is None:
                for rows in manifest.stale_failed():
                    self._report.not_found += sum(wants(row.name, self._path(row)) for row in rows)
                    yield
            if selection.prune:
                self._warn(
                    f"nothing was pruned, because {coverage.first_unread} could not be read: correct the reason, and "
                    "run again"
                )
            return
        refusal = ""
        if selection.prune:
            found = manifest.find_stale()
            yield
            refusal = self._refusal(found)
            if not refusal or self._report.dry_run:
                yield from self._prune()
        for rows in manifest.stale_failed(with_overlays=not selection.prune):
            self._forget(rows)
            yield
        if refusal and not self._report.dry_run:
            raise SettingsError(refusal)
        if refusal:
            self._warn(refusal)

    def _prune(self) -> Iterator[None]:
        report = self._report
        folder = Identity.parse(self._manifest.destination() or "").folder
        with Objects(self._selection.settings.s3) as objects:
            for rows, locators in self._manifest.stale():
                kept: dict[str, str] = {}
                if self._selection.prune == "objects":
                    if not report.dry_run:
                        kept = objects.delete(locators, folder)
                    report.deleted += len(locators) - len(kept)
                    if kept and not report.undeleted:
                        locator, reason = next(iter(kept.items()))
                        self._warn(
                            f"overlays could not be deleted, such as {locator}: {reason}. Their rows stay: correct the "
                            "reason, and run again"
                        )
                    report.undeleted += len(kept)
                self._forget([row for row in rows if row.locator not in kept])
                yield

    def _warn(self, warning: str) -> None:
        self._report.warnings.append(warning)
        _logger.warning("%s", warning)

    def _forget(self, rows: Sequence[StaleRow]) -> None:
        if rows:
            self._report.forget([row.name for row in rows if row.number is not None])
            if not self._report.dry_run:
                self._manifest.forget(rows)

    def _refusal(self, found: int) -> str:
        """Return why not to prune: more than half would go, or as many as were refused before; else empty."""
        stored, root = self._stored or 0, self._coverage.root
        before = self._manifest.refused_prune(root)
        if self._selection.prune_all or not found or (found * 2 <= stored and (before is None or found < before)):
            if not self._report.dry_run and before is not None:
                self._manifest.keep_refused_prune(root, None)
            return ""
        if not self._report.dry_run:
            self._manifest.keep_refused_prune(root, min(found, before or found))
        how_many = "more than half" if found * 2 > stored else "as many as were refused before"
        return (
            f"nothing is pruned, because {found:,} of the {stored:,} overlays of {root} are of maps that "
            f"are gone, {how_many}: check that the source is complete; to prune them, add --prune-all"
        )

    def _path(self, row: StaleRow) -> str:
        """Return the path of a row's file below the source."""
        return row.path.removeprefix(f"{self._coverage.root.rstrip('/')}/")
