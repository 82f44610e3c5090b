"""After a whole run with ``prune``, a manifest is that of a fresh run, for any history of its source."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import async_maps as am
from async_maps.manifest.schema import COLUMNS
from tests.support.entries import save_map, save_tar
from tests.support.manifests import rows
from tests.support.maps import npy
from tests.support.properties import examples

if TYPE_CHECKING:
    from async_maps.manifest.manifest import Select
    from async_maps.manifest.prune import Prune

_FILES = ["a.npy", "b.npy", "b.npz", "deep/c.npy", "deep/d.npz", "e.tar", "f.npz"]
_KINDS = ["map", "stack", "bad values", "broken", "members", "gone", "renamed", "moved aside"]
_PLACE = "(SELECT place FROM roots WHERE id = root)"
_SAME = ", ".join([*(column for column in COLUMNS if column != "time"), "file", _PLACE])


class Tree:
    """A folder of maps whose files are edited."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        save_map(folder / "always.npy")
        self._edits = 0

    def edit(self, file: str, kind: str) -> None:
        """Turn a file into one of another kind, with new values."""
        self._edits += 1
        path = self.folder / file
        path.parent.mkdir(exist_ok=True)
        if kind == "renamed" and path.exists():
            path.rename(path.with_stem(f"{path.stem}-{self._edits}"))
        elif kind == "moved aside" and path.exists():
            path.rename(path.with_name(f"x-{path.name}"))
        elif kind == "broken":
            path.write_bytes(f"broken {self._edits}".encode())
        else:
            path.unlink(missing_ok=True)
        if kind not in {"map", "stack", "bad values", "members"}:
            return
        rng = np.random.default_rng(self._edits)
        array = rng.random((3, 5, 4) if kind == "stack" else (5, 4))
        if kind == "bad values":
            array += 7
        members: dict[str, Any] = (
            {"x": array} if kind != "members" else {"x": array, "y": array + 7, f"z{self._edits % 3}": array}
        )
        if file.endswith(".npy"):
            save_map(path, array)
        elif file.endswith(".npz"):
            np.savez(path, **members)
        else:
            save_tar(path, {f"{name}.npy": npy(member) for name, member in members.items()})


def _run(tree: Tree, manifest: Path, out: Path, **how: Any) -> am.Report:
    settings = {name: how.pop(name) for name in list(how) if name in am.Settings.model_fields}
    settings = {"workers": 0, "encode_threads": 1, **settings}
    return am.run(tree.folder, out, manifest=manifest, settings=am.Settings(**settings), **how)


_EDITS = st.tuples(st.sampled_from(_FILES), st.sampled_from(_KINDS))
_RUNS = st.fixed_dictionaries(
    {"select": st.sampled_from(["changed", "failed", "all"])},
    optional={
        "limit": st.integers(1, 9),
        "include": st.sampled_from(["a*", "deep", "e", "*.npz", "always"]),
        "exclude": st.sampled_from(["b", "deep/d", "x"]),
        "channels": st.just("mean"),
    },
)


@given(
    st.lists(st.tuples(st.lists(_EDITS, max_size=6), _RUNS), min_size=1, max_size=4),
    st.lists(_EDITS, max_size=6),
    st.sampled_from(["changed", "all"]),
    st.sampled_from(["rows", "objects"]),
)
@examples(20)
def test_a_pruned_manifest_is_that_of_a_fresh_run(
    history: list[tuple[list[tuple[str, str]], dict[str, Any]]],
    last: list[tuple[str, str]],
    select: Select,
    prune: Prune,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tree, out, manifest = Tree(Path(folder) / "maps"), Path(folder) / "out", Path(folder) / "m.sqlite"
        for edits, how in history:
            for edit in edits:
                tree.edit(*edit)
            if not manifest.exists() and how["select"] == "failed":
                continue  # it is refused
            is_whole = not {"limit", "include", "exclude"} & how.keys()
            try:
                report = _run(tree, manifest, out, **how)
            except am.SourceError:
                assert not is_whole
            else:
                assert not is_whole or report.failed == len(rows(manifest, "name", "status = 'failed'"))
        for edit in last:
            tree.edit(*edit)
        pruned = _run(tree, manifest, out, select=select, prune=prune, prune_all=True)
        overlays = {path.as_uri() for path in out.rglob("*.png")}
        fresh = _run(tree, Path(folder) / "fresh.sqlite", out)
        assert sorted(rows(manifest, _SAME), key=repr) == sorted(rows(Path(folder) / "fresh.sqlite", _SAME), key=repr)
        assert pruned.failed == fresh.failed
        assert overlays >= set(rows(manifest, "locator", "locator IS NOT NULL"))
