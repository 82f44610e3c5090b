"""Formats that are not read, and the lines of Python that upload their maps with the library of the format."""

from __future__ import annotations

from typing import NamedTuple


class OtherFormat(NamedTuple):
    """A format that is not read.

    Attributes:
        name: its name, for people.
        modules: the modules that the expression needs, as in ``import x``.
        load: an expression that returns a 2-D array for a ``path``, or pairs of a name and an array with ``many``.
        many: whether a file has several maps.
        note: what else to know; empty if nothing.
    """

    name: str
    modules: str
    load: str
    many: bool = False
    note: str = ""

    def program(self, suffix: str, source: str, destination: str) -> str:
        """Return the lines of Python; ``source`` and ``destination`` are expressions."""
        files = f'Path({source}).rglob("*{suffix}")'
        if self.many:
            pairs = f'(f"{{path.stem}}/{{name}}", cam) for path in {files} for name, cam in {self.load}'
        else:
            pairs = f"(path.stem, {self.load}) for path in {files}"
        imports = f"import {self.modules}; from pathlib import Path; import async_maps as am"
        return f"{imports}; am.run(({pairs}), {destination})"


_TRUSTED = "loading a pickle runs the code in it, so do this only with files that you trust"
_PICKLE = OtherFormat("pickled objects", "pickle", "pickle.loads(path.read_bytes())", note=_TRUSTED)
_NIFTI = OtherFormat(
    "NIfTI volumes",
    "nibabel",
    '((f"{z:03}", nibabel.load(path).dataobj[..., z]) for z in range(nibabel.load(path).shape[2]))',
    many=True,
)
_DICOM = OtherFormat("DICOM", "pydicom", "pydicom.dcmread(path).pixel_array", note="set --range, such as per-map")
_PICTURE = OtherFormat("pictures of this kind", "numpy", 'numpy.asarray(PIL.Image.open(path).convert("L"))')
_PICTURE = _PICTURE._replace(modules="numpy, PIL.Image")
_TEXT = OtherFormat("numbers as text", "numpy", "numpy.loadtxt(path)")
_LIST = "for a list of paths, run: async-maps run - DESTINATION < FILE"
_TENSORFLOW = OtherFormat(
    "TFRecord",
    "tensorflow as tf",
    '((f"{i:06}", tf.io.parse_tensor(tf.train.Example.FromString(record.numpy()).features.feature["cam"]'
    ".bytes_list.value[0], tf.float32).numpy()) for i, record in enumerate(tf.data.TFRecordDataset(str(path))))",
    many=True,
    note='"cam" is the feature with the serialized tensor',
)
OTHER_FORMATS = {
    ".pkl": _PICKLE,
    ".pickle": _PICKLE,
    ".joblib": OtherFormat("pickled objects", "joblib", "joblib.load(path)", note=_TRUSTED),
    ".nii": _NIFTI,
    ".nii.gz": _NIFTI,
    ".dcm": _DICOM,
    ".dicom": _DICOM,
    ".exr": OtherFormat("OpenEXR", "OpenEXR", "next(iter(OpenEXR.File(str(path)).channels().values())).pixels"),
    ".tfrecord": _TENSORFLOW,
    ".tfrecords": _TENSORFLOW,
    ".mds": OtherFormat(
        "MosaicML shards",
        "streaming",
        '((f"{i:06}", row["cam"]) for i, row in enumerate(streaming.StreamingDataset(local=str(path.parent))))',
        many=True,
        note='"cam" is the column of the maps',
    ),
    ".lance": OtherFormat(
        "Lance",
        "lance, numpy",
        '((f"{i:06}", numpy.array(row["cam"])) for batch in lance.dataset(str(path)).to_batches(columns=["cam"]) '
        "for i, row in enumerate(batch.to_pylist()))",
        many=True,
        note='"cam" is the column of the maps',
    ),
    ".fits": OtherFormat("FITS", "astropy.io.fits", "astropy.io.fits.getdata(path)"),
    ".txt": _TEXT._replace(note=_LIST),
    ".dat": _TEXT,
    **dict.fromkeys((".bmp", ".gif", ".webp", ".pgm"), _PICTURE),
}
"""By suffix. The tests run the programs of those formats whose library is small."""

_PACKED = "packed files are not read; unpack them, and choose the folder as the source"
_TORCH = "if torch.save wrote the file, give it a name that ends in .pt"
_HDF5 = "if the file is HDF5, give it a name that ends in .h5"
_NETCDF = "if the file is NetCDF, give it a name that ends in .nc"
_TABLE = "a listing is a .csv or .jsonl file with the columns name and path"
OTHER_NAMES = {
    **dict.fromkeys((".zip", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"), _PACKED),
    **dict.fromkeys((".ckpt", ".bin", ".pkt"), _TORCH),
    **dict.fromkeys((".hdf", ".he5", ".h5py", ".hf5"), _HDF5),
    **dict.fromkeys((".netcdf", ".cdf", ".nc3"), _NETCDF),
    **dict.fromkeys((".tsv", ".json", ".ndjson"), _TABLE),
}
"""What to do with files of other suffixes, which may hold maps."""

ARRAYS_NOT_READ = {
    suffix[suffix.rfind(".") :]
    for suffix, other in OTHER_FORMATS.items()
    if other not in {_PICTURE, _TEXT, OTHER_FORMATS[".txt"]}
}
"""The last suffixes of those of them that are not pictures or text."""


def advice_for(path: str) -> str:
    """Return how to upload the maps of a file in a format that is not read, as a sentence; empty if it is unknown."""
    lower = path.lower()
    suffix = max((suffix for suffix in OTHER_FORMATS if lower.endswith(suffix)), key=len, default="")
    if not suffix:
        return OTHER_NAMES.get(lower[lower.rfind(".") :], "")
    other = OTHER_FORMATS[suffix]
    note = f" ({other.note})" if other.note else ""
    program = other.program(suffix, '"FOLDER"', '"DESTINATION"')
    return f"{other.name} are not read; upload them from Python{note}: {program}"
