"""Runs the failed maps of a part again, and commits what changes as the next generation of its manifest."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from anyio import to_thread

from async_maps.errors import PlanError
from async_maps.filesystems.temporary import unique_text
from async_maps.keys import printable
from async_maps.manifest.retried import RetriedManifest
from async_maps.outcomes import Failure
from async_maps.plans.commits import read_manifests
from async_maps.plans.manifests import FILE, SOURCE, STATUS, Footer, manifest_name, read_footer, write_changes
from async_maps.plans.rows import merged
from async_maps.shares.part import PartDone, Parts, PartStopped, files_of_part

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from async_maps.plans.document import Plan
    from async_maps.plans.manifests import Row
    from async_maps.plans.place import Place
    from async_maps.sources.given import GivenFiles
    from async_maps.sources.named import NamedFile


class Retries(Parts):
    """Runs the failed maps of committed parts again, in an open pipeline."""

    async def run(self, part: int) -> PartDone | PartStopped:
        """Run the failed maps of a committed part again, and commit the rows that change.

        If another process commits a retry of the same rows first, this one starts again from the rows of that one.

        Raises:
            PlanError: the part is not committed, or an object of it was deleted or is damaged.
            StoreError: a store cannot be used: nothing is committed.
        """
        uploaded = 0
        while not self.is_draining:
            before = await to_thread.run_sync(_newest, self.place, self.plan, part)
            if not before.footer.failures:
                return PartDone(part, is_ours=False, uploaded=uploaded)
            manifest = self.folder / f"{part:07}-{unique_text()}.sqlite"
            failed = await to_thread.run_sync(_load, manifest, before, self.plan.source)
            source = _related(await files_of_part(self.place, self.plan, part, maybe_stored=True), failed)
            report = await self.pipeline.run(
                source, manifest=manifest, select="failed", on_progress=partial(self.note, part)
            )
            self.running[part] = report
            if not report.complete:
                break
            uploaded += report.uploaded
            made = await to_thread.run_sync(_changes, manifest, before.next())
            if made is None:
                return PartDone(part, is_ours=False, uploaded=uploaded, failed=report.failed, is_unchanged=True)
            footer, data = made
            if await self.place.create(footer.name, data):
                return PartDone(part, is_ours=True, uploaded=uploaded, failed=footer.failures)
        return PartStopped(part)


class _Newest(NamedTuple):
    """The manifests of a part, from generation 0 on, their addresses, and the footer of the newest."""

    manifests: list[bytes]
    addresses: list[str]
    footer: Footer

    def rows(self) -> Iterator[Row]:
        return merged(self.manifests, self.addresses.__getitem__)

    def next(self) -> Footer:
        """Return the footer of the next generation, without counts."""
        before = self.footer
        return Footer(before.plan, before.part, before.generation + 1, unique_text(), parent=before.digest)


def _newest(place: Place, plan: Plan, part: int) -> _Newest:
    manifests = read_manifests(place.objects, plan, part)
    addresses = [place.locator(manifest_name(plan.id, part, generation)) for generation in range(len(manifests))]
    if not manifests:
        raise PlanError(f"part {part:,} of {place.address} is not committed: run it before its failed maps")
    return _Newest(manifests, addresses, read_footer(manifests[-1], addresses[-1]))


def _load(manifest: Path, before: _Newest, root: str) -> set[str]:
    """Make a manifest of the rows; return the files of the failed maps, as in messages."""
    with RetriedManifest(manifest) as opened:
        opened.load(before.rows(), root)
    return {str(row[FILE] or row[SOURCE]) for row in before.rows() if row[STATUS] == "failed"}


def _related(source: GivenFiles, failed: Collection[str]) -> GivenFiles:
    """Return the files with failed maps, and those of the same name, which may be why a map was refused."""
    names = {file.name for file in source.files if _path(file) in failed}
    related = [file for file in source.files if file.name in names or _path(file) in failed]
    # A failure of another place may be of any file.
    return replace(source, files=related) if {_path(file) for file in related}.issuperset(failed) else source


def _path(file: NamedFile | Failure) -> str:
    return printable(file.file or file.source) if isinstance(file, Failure) else printable(file.path)


def _changes(manifest: Path, footer: Footer) -> tuple[Footer, bytes] | None:
    with RetriedManifest(manifest, read_only=True) as opened:
        made = write_changes(opened, footer)
    for path in manifest.parent.glob(f"{manifest.name}*"):
        path.unlink()
    return made
