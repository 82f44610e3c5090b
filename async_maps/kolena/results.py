"""Masks for Kolena from a manifest or a plan: all, or a data frame of results with masks. Everything here blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import closing
from datetime import date, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from async_maps.errors import InputValidationError, SettingsError, require_extra
from async_maps.kolena.masks import Mask, mask_maker, provenance_fields
from async_maps.kolena.missing import Column, describe_missing, listed
from async_maps.manifest.schema import COLUMNS
from async_maps.outcomes import MapStatistics
from async_maps.plans.rows import open_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from os import PathLike

    import pandas as pd

    AnyManifest = str | PathLike[str] | Mapping[str, str | PathLike[str]]
    On = str | int | Callable[[dict[str, Any]], str | None]
    Overlays = dict[str | None, "_Overlay"]

_DROPPED = "data_type"
"""Kolena drops columns whose names end like this when results are downloaded (``kolena.dataset`` 1.69.0)."""
_NAME = COLUMNS.index("name")


def inference_masks(manifest: str | PathLike[str], *, provenance: bool = False, **fields: Any) -> dict[str, Mask]:
    """Make the masks of all maps that are done, for the ``infer`` of a model in a workflow.

    All masks are in memory. For millions of maps use :func:`results_frame`, which keeps only the masks of its rows, or
    :func:`async_maps.export_manifest`, which streams.

    Args:
        manifest: the path of a manifest that ``async-maps run`` or ``Pipeline.run`` has written; or the address of a
            plan whose parts are all committed.
        provenance: whether each mask has the fields ``map_name``, ``range_low``, ``range_high`` and ``colormap``; see
            :func:`~async_maps.kolena.bitmap_mask`. ``colormap`` is None for gray overlays.
        fields: further fields of each mask.

    Returns:
        The masks by the names of the maps.

    Raises:
        ManifestError: the manifest cannot be read.
        PlanError: the plan cannot be read, or parts of it are not committed.
        InputValidationError: Kolena cannot read a locator.
        SettingsError: a field is called ``locator`` or ``data_type``, which every mask has.
    """
    return {row["name"]: mask for row, mask in _masks(manifest, provenance, fields)}


def results_frame(  # noqa: PLR0913  # one argument a choice, all but three with a default
    manifest: AnyManifest,
    results: pd.DataFrame,
    *,
    on: On,
    column: str = "activation_map",
    layers: Sequence[str] | None = None,
    statistics: str | Sequence[str] = (),
    missing: Literal["error", "none"] = "error",
    provenance: bool = False,
) -> pd.DataFrame:
    """Add the masks of overlays to results, for ``kolena.dataset.upload_results``.

    Values that would break the upload are converted: NaN and infinity to None, NumPy values and arrays to numbers and
    lists, decimals to numbers, times to ISO 8601. Kolena's objects are not changed. Two rows of one map share its mask.

    Args:
        manifest: the path of a manifest that ``async-maps run`` or ``Pipeline.run`` has written; or the address of a
            plan whose parts are all committed. If each layer has its own run, a mapping:
            ``{"layer3": "layer3.sqlite", "layer4": "layer4.sqlite"}``.
        results: one row per datapoint; not changed.
        on: the column with the names of the maps (``val/0001`` for ``val/0001.npy``), or a function that makes the name
            from a row, such as ``lambda row: Path(row["locator"]).stem``. A row with None or NaN has no map. 17.0 means
            the map ``17``, because pandas converts 17 to 17.0 in a column with NaN. A column can be named by a number:
            ``on=0``.
        column: the name of the new column.
        layers: if one run had all layers, the last parts of its names: ``["layer3", "layer4"]`` for ``img-1/layer3``
            and ``img-1/layer4``. With layers, of either kind, each row has the list of its masks, in the order of the
            layers, and each mask has a field ``layer``.
        statistics: one field of :class:`~async_maps.MapStatistics`, or several, to add as columns: ``high_share``
            becomes ``activation_map_high_share``, or ``activation_map_layer3_high_share`` with layers.
        missing: what to do if a row has no overlay. ``error``: raise an error that counts and names these rows, says
            which of their maps failed and why, and how the other names differ from the manifest's. ``none``: put None,
            or with layers the list of the masks that exist.
        provenance: as for :func:`inference_masks`.

    Returns:
        A new data frame: the columns and the index of ``results``, and the new columns.

    Raises:
        MissingExtraError: pandas is not installed.
        ManifestError: a manifest cannot be read.
        PlanError: a plan cannot be read, or parts of it are not committed.
        InputValidationError: overlays are missing, Kolena cannot read a locator, or a value has no form in JSON.
        SettingsError: a column is missing, exists already or would be dropped by Kolena; the index is of floats, whose
            rows Kolena would drop; or a statistic is unknown.
    """
    with require_extra("a frame of results", "kolena"):
        import pandas as pd
    if missing not in {"error", "none"}:
        raise SettingsError(f"missing: expected 'error' or 'none', found {missing!r}")
    sets = _layers(manifest, layers)
    chosen = _statistics(statistics)
    titles = {(layer, name): "_".join(filter(None, (column, layer.label, name))) for layer in sets for name in chosen}
    _refuse_columns(results, on, [column, *titles.values()])

    named = _names(results, on)
    names = named.names
    wanted = {name for name in names if name is not None}
    found = {layer: layer.overlays(wanted, provenance) for layer in sets}
    if missing == "error":
        _refuse_missing(named, found, None if callable(on) else named)
    masks: list[Any] = [
        [overlays[name].mask for overlays in found.values() if name in overlays] or None for name in names
    ]
    if sets[0].label is None:
        masks = [mask and mask[0] for mask in masks]

    columns = {str(title): _plain_column(str(title), values) for title, values in results.items()}
    columns[column] = pd.Series(masks, results.index, dtype=object)
    for (layer, statistic), title in titles.items():
        overlays = found[layer]
        values = [getattr(overlays[name].statistics, statistic) if name in overlays else None for name in names]
        columns[title] = pd.Series(values, results.index, dtype=object)
    return pd.DataFrame(columns, results.index)


class _Overlay(NamedTuple):
    mask: Mask
    statistics: MapStatistics


class _Layer(NamedTuple):
    """One overlay of each datapoint: its manifest, and the end of its name there."""

    label: str | None
    manifest: str | PathLike[str]
    suffix: str = ""

    def overlays(self, datapoints: Collection[str], provenance: bool) -> Overlays:
        """Return the overlays of the datapoints by name; others are not kept in memory."""
        fields = {} if self.label is None else {"layer": self.label}
        found: Overlays = {}
        for row, mask in _masks(self.manifest, provenance, fields, lambda name: self.datapoint(name) in datapoints):
            found[self.datapoint(row["name"])] = _Overlay(
                mask, MapStatistics(*(row[field] for field in MapStatistics._fields))
            )
        return found

    def datapoint(self, name: str) -> str | None:
        """Return the name of a map without the layer; None if it belongs to another layer."""
        return name.removesuffix(self.suffix) if name.endswith(self.suffix) else None


def _layers(manifest: AnyManifest, layers: Sequence[str] | None) -> list[_Layer]:
    if isinstance(layers, str):
        raise SettingsError(f"layers: expected a list of names, found {layers!r}")
    if not isinstance(manifest, Mapping):
        found = [_Layer(None, manifest)] if layers is None else [_Layer(name, manifest, f"/{name}") for name in layers]
    elif layers is not None:
        raise SettingsError("layers are named either by a mapping of manifests or by layers=, not by both")
    else:
        found = [_Layer(name, path) for name, path in manifest.items()]
    if not found:
        raise SettingsError("there are no layers: pass at least one")
    return found


def _statistics(given: str | Sequence[str]) -> list[str]:
    if not isinstance(given, Iterable):
        raise SettingsError(f"statistics: expected a list of names, found {given!r}")
    names = [given] if isinstance(given, str) else list(given)
    for name in names:
        if name not in MapStatistics._fields:
            raise SettingsError(f"statistics: there is no {name!r}; known: {', '.join(MapStatistics._fields)}")
    return names


def _masks(
    manifest: str | PathLike[str],
    provenance: bool,
    fields: dict[str, Any],
    is_wanted: Callable[[str], bool] = lambda _: True,
) -> Iterator[tuple[dict[str, Any], Mask]]:
    make = mask_maker(fields)
    with open_rows(manifest) as opened, closing(opened.rows()) as rows:
        # Gray overlays have no colormap: the viewer colors them.
        kept = opened.runs() if provenance else []
        colormaps = {run.settings: run.shaping["colormap"] for run in kept if run.shaping["png"] != "gray"}
        for values in rows:
            if is_wanted(str(values[_NAME])):
                row: dict[str, Any] = dict(zip(COLUMNS, values, strict=True))
                spanned = provenance_fields(row["name"], row["range_low"], row["range_high"])
                origin = {**spanned, "colormap": colormaps.get(row["settings"])} if provenance else {}
                yield row, make(row["locator"], **origin)


def _refuse_columns(results: pd.DataFrame, on: On, new: list[str]) -> None:
    there = [str(title) for title in results.columns]
    if results.index.dtype.kind == "f":
        # It splits such a frame into batches by labels (``kolena._utils.batched_load`` 1.69.0).
        raise SettingsError("Kolena's client loses rows of an index of floats: use results.reset_index()")
    if not callable(on) and str(on) not in there:
        raise SettingsError(f"on: the results have no column {on!r}; they have {', '.join(there)}")
    for title in [*there, *new]:
        if title.endswith(_DROPPED):
            raise SettingsError(f"Kolena drops columns whose names end in {_DROPPED!r}: rename {title!r}")
        if [*there, *new].count(title) > 1:
            raise SettingsError(f"there would be two columns {title!r}: drop one, or choose another name with column=")


def _names(results: pd.DataFrame, on: On) -> Column:
    titles = [str(title) for title in results.columns]
    if callable(on):
        values = [on(dict(zip(titles, row, strict=True))) for row in results.itertuples(index=False, name=None)]
    else:
        values = list(results.iloc[:, titles.index(str(on))])
    return Column(str(on), values, [_name(value) for value in values])


def _name(value: Any) -> str | None:
    if _is_missing(value):
        return None
    return str(int(value)) if isinstance(value, float | np.floating) and float(value).is_integer() else str(value)


def _refuse_missing(named: Column, found: dict[_Layer, Overlays], column: Column | None) -> None:
    names = named.names
    wanted = {name for name in names if name is not None}
    unnamed = sum(name is None for name in names)
    count = sum(name not in overlays for name in names for overlays in found.values())
    if not count:
        return
    manifests = ", ".join(dict.fromkeys(str(layer.manifest) for layer in found))
    of = "1 overlay is" if len(names) * len(found) == 1 else f"{len(names) * len(found):,} overlays are"
    sentences = [f"{count:,} of {of} missing; manifest: {manifests}"]
    if unnamed:
        sentences.append(f"{unnamed:,} {'row has' if unnamed == 1 else 'rows have'} no name")
    for layer, overlays in found.items():
        lacking = dict.fromkeys(name for name in names if name is not None and name not in overlays)
        if lacking:
            of_layer = f" of {layer.label}" if layer.label else ""
            sentences.append(f"missing{of_layer}: {listed(lacking, len(lacking))}")
            # A function that changes a name for this layer would lose its overlay of another layer.
            used = any(name in others for others in found.values() for name in lacking)
            sentences += describe_missing(layer, wanted, lacking, None if used else column)
    raise InputValidationError("\n".join([*sentences, "missing='none' puts None where an overlay is missing"]))


def _plain_column(title: str, values: pd.Series[Any]) -> pd.Series[Any]:
    import pandas as pd

    kind = values.dtype.kind if isinstance(values.dtype, np.dtype) else "O"
    if kind in "biu" or (kind == "f" and bool(np.isfinite(values).all())):
        return values
    try:
        return pd.Series([_plain(value) for value in values], values.index, dtype=object)
    except TypeError as error:
        raise InputValidationError(f"column {title!r}: {error}; convert it to numbers, text or lists") from error


def _plain(value: Any) -> Any:
    """Convert a value for JSON: the client's encoder does not support NumPy, and writes NaN, which is not JSON."""
    if isinstance(value, np.ndarray | np.generic):
        # NumPy would convert nanoseconds to integers.
        value = (value.astype(f"{value.dtype.kind}8[us]") if value.dtype.kind in "mM" else value).tolist()
    if isinstance(value, str | int):
        return value
    if isinstance(value, dict):
        return {_plain(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    if _is_missing(value):
        value = None
    elif isinstance(value, date | time):
        value = value.isoformat()
    elif not hasattr(value, "_to_dict"):  # Kolena's objects have it, for the upload
        raise TypeError(f"Kolena does not accept {type(value).__name__}")
    return value


def _is_missing(value: Any) -> bool:
    import pandas as pd

    return bool(pd.api.types.is_scalar(value) and pd.isna(value))
