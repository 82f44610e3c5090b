from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError

from async_maps.errors import SettingsError
from async_maps.machine.limits import Limit
from async_maps.render.colormap import ColormapJet, color_table
from async_maps.settings import FilesSettings, S3Settings, Settings
from async_maps.settings.file import load_settings

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fast


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.concurrency = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        settings.s3.max_attempts = 1  # type: ignore[misc]
    assert settings == Settings()


def test_parts_may_be_models_or_mappings() -> None:
    as_models = Settings(s3=S3Settings(cache_control="no-cache"), files=FilesSettings(fsync=True))
    assert as_models == Settings(s3={"cache_control": "no-cache"}, files={"fsync": True})
    assert as_models.s3.cache_control == "no-cache"
    assert as_models.files.fsync


class Bright:
    def colorize(self, intensity: int) -> tuple[int, int, int, int]:
        return 300, 0, 0, 255


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"nope": 1}, "nope is not a setting"),
        ({"s3": {"nope": 1}}, "s3.nope is not a setting"),
        ({"self": 1}, "self is not a setting"),
        ({"colormap": "virdis"}, "unknown colormap 'virdis'; similar names: viridis, "),
        ({"colormap": "no such thing at all"}, "expected jet or a name of the cmap package"),
        ({"colormap": 5}, "a colormap must be a name, a list of colors, a 256x3 or 256x4 array"),
        ({"colormap": ["black", "nocolor"]}, "'nocolor' is not a color; expected a name, #rrggbb"),
        ({"alpha": "perhaps"}, "alpha: expected auto, fade, opaque or a number from 0 to 1, found 'perhaps'"),
        ({"alpha": [0.5]}, "alpha: expected auto, fade, opaque or a number from 0 to 1, found [0.5]"),
        ({"alpha": 1.5}, "alpha: expected auto, fade, opaque or a number from 0 to 1, found 1.5"),
        ({"range": "full"}, "unknown range 'full'; expected unit, LO,HI, per-map, percentile:P,Q, symmetric, dataset"),
        ({"range": "percentile:1,120"}, "percentiles must lie in 0 to 100, the first below the second"),
        ({"range": "percentile:99,1"}, "percentiles must lie in 0 to 100, the first below the second"),
        ({"range": "dataset:-1,99"}, "percentiles must lie in 0 to 100"),
        ({"range": "percentile:1"}, "unknown range 'percentile:1'"),
        ({"colormap": ColormapJet}, "a colormap must be an object; found the class ColormapJet: call it"),
        ({"colormap": Bright()}, "Bright.colorize(0) must return values from 0 to 255; found [300   0   0 255]"),
        ({"s3": {1: 2}}, "keywords must be strings"),
        ({"range": "percent:1,99"}, "unknown range 'percent:1,99'"),
        ({"range": "from:"}, "unknown range 'from:'"),
        ({"range": "2,1"}, "range '2,1': the first value must be below the second"),
        ({"range": "nan,1"}, "range 'nan,1': the values must be finite"),
        ({"range": "-inf,1"}, "range '-inf,1': the values must be finite"),
        ({"invalid": "drop"}, "invalid: input should be 'error', 'transparent' or 'zero', found 'drop'"),
        ({"key": "{nam}.png"}, "key '{nam}.png': unknown field {nam}; known: name, digest, stem, parent, index"),
        ({"key": "all.png"}, "key 'all.png' gives all maps of a folder the same key: add {name} or {stem}"),
        ({"key": "{parent}.png"}, "gives all maps of a folder the same key"),
        ({"key": "{name"}, "key '{name': expected '}' before end of string"),
        ({"key": "{name!r}"}, "only {index} can have a width ({index:06}), and only {digest} a precision"),
        ({"key": "{name.__class__}"}, "unknown field {name.__class__}"),
        ({"key": "{digest:.8}"}, "only {digest} a precision of at least 16 ({digest:.16})"),
        ({"key": "{index:x}"}, "only {index} can have a width"),
        ({"key": "../{name}.png"}, "key '../{name}.png': the name '../stem.png': '..' is not allowed"),
        ({"key": ""}, "gives all maps of a folder the same key"),
        ({"png": "jpg"}, "png: input should be 'palette', 'rgba', 'compact' or 'gray', found 'jpg'"),
        ({"png_level": 4}, "png_level: input should be less than or equal to 3, found 4"),
        ({"png_level": -1}, "png_level: input should be greater than or equal to 0, found -1"),
        ({"workers": -1}, "workers: input should be greater than or equal to 0, found -1"),
        ({"workers": 1025}, "workers: input should be less than or equal to 1024, found 1025"),
        ({"encode_threads": 10**30}, "encode_threads: input should be less than or equal to 1024, found 1000"),
        ({"concurrency": 10_001}, "concurrency: input should be less than or equal to 10000, found 10001"),
        ({"prefetch": 10_001}, "prefetch: input should be less than or equal to 10000, found 10001"),
        ({"workers": "many"}, "workers: input should be 'auto', found 'many'"),
        ({"encode_threads": 0}, "encode_threads: input should be greater than 0, found 0"),
        ({"concurrency": 0}, "concurrency: input should be greater than 0, found 0"),
        ({"concurrency": None}, "concurrency: input should be a valid integer, found None"),
        ({"concurrency": "many"}, "concurrency: input should be 'auto', found 'many'"),
        ({"rate": 0}, "rate: input should be greater than 0, found 0"),
        ({"rate": "fast"}, "rate: input should be a valid number"),
        ({"bandwidth": 0}, "bandwidth: input should be greater than 0, found 0"),
        ({"bandwidth": "0MB"}, "bandwidth: input should be greater than 0, found '0MB'"),
        ({"bandwidth": "auto"}, "bandwidth: input should be a number of bytes or a size such as 64MB or 1GiB"),
        ({"prefetch": 0}, "prefetch: input should be greater than 0, found 0"),
        ({"chunk_maps": 0}, "chunk_maps: input should be greater than 0, found 0"),
        ({"chunk_bytes": 1.5}, "chunk_bytes: input should be a valid integer"),
        ({"queue_bytes": 0}, "queue_bytes: input should be greater than 0, found 0"),
        ({"max_failures": -1}, "max_failures: input should be greater than or equal to 0, found -1"),
        ({"drain_timeout_s": 0}, "drain_timeout_s: input should be greater than 0, found 0"),
        ({"drain_timeout_s": float("nan")}, "drain_timeout_s: input should be a finite number, found nan"),
        ({"drain_timeout_s": float("inf")}, "drain_timeout_s: input should be a finite number, found inf"),
        ({"s3": {"read_timeout_s": float("inf")}}, "s3.read_timeout_s: input should be a finite number, found inf"),
        ({"s3": 5}, "s3: input should be a valid dictionary"),
        ({"s3": {"max_attempts": 0}}, "s3.max_attempts: input should be greater than 0, found 0"),
        ({"s3": {"server_side_encryption": "rot13"}}, "s3.server_side_encryption: input should be 'AES256'"),
        ({"s3": {"metadata": {"run": 7}}}, "s3.metadata.run: input should be a valid string, found 7"),
        ({"s3": {"metadata": {"Run": "1", "run": "2"}}}, "s3.metadata: names should differ in more than their case"),
        ({"s3": {"acl": "everyone"}}, "s3.acl: input should be 'private', 'public-read'"),
        ({"s3": {"request_payer": "owner"}}, "s3.request_payer: input should be 'requester', found 'owner'"),
        ({"s3": {"tagging": {"a\nb": "x"}}}, "s3.tagging: names and values should be printable text on one line"),
        ({"s3": {"tagging": {"a": "x\0"}}}, "s3.tagging: names and values should be printable text on one line"),
        ({"s3": {"tagging": {"": "x"}}}, "s3.tagging: names should have 1 to 128 characters"),
        ({"s3": {"tagging": {"a": "x" * 257}}}, "s3.tagging: names should have 1 to 128 characters"),
        ({"s3": {"tagging": {str(n): "" for n in range(11)}}}, "s3.tagging: input should have at most 10 tags"),
        ({"files": {"fsync": "perhaps"}}, "files.fsync: input should be a valid boolean"),
    ],
)
def test_an_invalid_value_is_refused_with_one_message(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        Settings(**values)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "pydantic" not in str(refusal.value)
    assert isinstance(refusal.value, ValueError)


@pytest.mark.parametrize("name", ["cache_control", "storage_class", "kms_key_id"])
@pytest.mark.parametrize("text", ["a\nb", "a\r\nX-Evil: 1", "café", "\x00"])
def test_http_header_values_must_be_one_line_of_ascii(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=rf"s3\.{name}: input should be printable ASCII"):
        Settings(s3={name: text})
    with pytest.raises(SettingsError, match=r"s3\.metadata: input should be printable ASCII"):
        Settings(s3={"metadata": {"key": text}})


@pytest.mark.parametrize("key", ["", "a b", "a:b", "é", "a\nb"])
def test_metadata_keys_must_be_header_names(key: str) -> None:
    with pytest.raises(SettingsError, match=r"s3\.metadata: names should be letters"):
        Settings(s3={"metadata": {key: "value"}})


def test_every_wrong_value_is_named() -> None:
    wrong: dict[str, Any] = {"png": "jpg", "concurrency": 0, "s3": {"max_attempts": 0}, "nope": 1}
    with pytest.raises(SettingsError, match=r"^png: .*; concurrency: .*; s3\.max_attempts: .*; nope is not a setting$"):
        Settings(**wrong)


@pytest.mark.parametrize(
    ("part", "values", "sentence"),
    [
        (S3Settings, {"max_attempts": 0}, "max_attempts: input should be greater than 0, found 0"),
        (S3Settings, {"max_attempt": 1}, "max_attempt is not a setting"),
        (FilesSettings, {"fsync": "perhaps"}, "fsync: input should be a valid boolean"),
    ],
)
def test_a_part_refuses_invalid_values_too(part: type[Any], values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=f"^{sentence}"):
        part(**values)


@pytest.mark.parametrize("given", [(-2, 2), [-2.0, 2.0], "-2,2"])
def test_a_range_may_be_two_numbers_or_text(given: Any) -> None:
    assert Settings(range=given).range == "-2.0,2.0"


@pytest.mark.parametrize(("cores", "workers", "threads"), [(1, 1, 2), (2, 1, 2), (3, 2, 3), (7, 4, 7)])
def test_auto_depends_on_the_cores(cores: int, workers: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_maps.settings.cores", lambda: Limit(cores))
    assert (Settings().worker_count, Settings().encode_thread_count) == (workers, threads)
    given = Settings(workers=0, encode_threads=7)
    assert (given.worker_count, given.encode_thread_count) == (0, 7)


def test_table_returns_the_colors_of_the_colormap() -> None:
    np.testing.assert_array_equal(Settings().table(), color_table(ColormapJet()))
    opaque = Settings(alpha="opaque").table()
    np.testing.assert_array_equal(opaque[:, :3], color_table(ColormapJet())[:, :3])
    assert (opaque[:, 3] == 255).all()


_SHAPING: dict[str, Any] = {
    "colormap": "viridis",
    "alpha": 0.5,
    "range": "per-map",
    "invalid": "zero",
    "png": "rgba",
    "png_level": 2,
    "key": "{stem}.png",
    "channels": "sum",
    "column": "cam",
}
_OTHER: dict[str, Any] = {
    "processes": 3,
    "workers": 3,
    "encode_threads": 3,
    "concurrency": 5,
    "rate": 100.0,
    "bandwidth": "100MB",
    "prefetch": 5,
    "chunk_maps": 3,
    "chunk_bytes": 99,
    "queue_bytes": 99,
    "max_pixels": 99,
    "max_failures": 3,
    "if_exists": "skip",
    "same_destination": "yes",
    "include": "cam",
    "exclude": ("onehot", "boxes"),
    "drain_timeout_s": 3.0,
    "s3": {"cache_control": "no-cache", "max_attempts": 1},
    "files": {"fsync": True},
}


@pytest.mark.parametrize("name", _SHAPING)
def test_the_fingerprint_changes_with_settings_that_shape_the_png(name: str) -> None:
    assert Settings(**{name: _SHAPING[name]}).fingerprint() != Settings().fingerprint()


def test_the_fingerprint_of_gray_ignores_colors() -> None:
    gray = Settings(png="gray").fingerprint()
    assert Settings(png="gray", colormap="viridis", alpha=0.5).fingerprint() == gray
    assert Settings(png="gray", range="per-map").fingerprint() != gray


def test_gray_with_transparent_invalid_values_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"^png gray has no transparent pixels: set invalid to zero or error, or "):
        Settings(png="gray", invalid="transparent")
    assert Settings(png="gray", invalid="zero").png == "gray"


@pytest.mark.parametrize("name", _OTHER)
def test_the_fingerprint_ignores_other_settings(name: str) -> None:
    changed = Settings(**{name: _OTHER[name]})
    assert changed != Settings()
    assert changed.fingerprint() == Settings().fingerprint()


def test_every_setting_is_in_the_tests_of_the_fingerprint() -> None:
    # "colormap" is in _SHAPING too.
    assert set(Settings.model_fields) == {*_SHAPING, *_OTHER, "colormap"}


def test_the_default_fingerprint_does_not_change() -> None:
    # Another fingerprint makes every user upload every map again. Change it only on purpose.
    assert Settings().fingerprint() == "b171ce930735a58f"


def test_settings_are_loaded_from_toml(tmp_path: Path) -> None:
    file = tmp_path / "café.toml"
    file.write_text(
        'png = "rgba"\nworkers = 0\n[s3]\ncache_control = "no-cache"\n[s3.metadata]\nrun = "7"\n', encoding="utf-8"
    )
    expected = Settings(png="rgba", workers=0, s3={"cache_control": "no-cache", "metadata": {"run": "7"}})
    assert load_settings(file) == load_settings(str(file)) == expected
    file.write_text("")
    assert load_settings(file) == Settings()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16-le", "utf-16-be"])
def test_settings_of_editors_of_windows_are_loaded(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "s.toml"
    mark = "" if encoding == "utf-8-sig" else "\ufeff"
    file.write_bytes(f'{mark}png = "rgba"\r\ninclude = "é"\r\n'.encode(encoding))
    assert load_settings(file) == Settings(png="rgba", include="é")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"png = ", "{file} is not TOML: Invalid value (at "),
        pytest.param(b"workers = " + b"9" * 5000, "{file} is not TOML: Exceeds the limit", id="5,000 digits"),
        (b"\xff", "{file} is not TOML: 'utf-8' codec can't decode byte 0xff"),
        (b"color = 1", "{file}: color is not a setting"),
        (b"self = 1", "{file}: self is not a setting"),
        (b"[s3]\ncolor = 1", "{file}: s3.color is not a setting"),
        (b"concurrency = 0", "{file}: concurrency: input should be greater than 0, found 0"),
        (b"drain_timeout_s = inf", "{file}: drain_timeout_s: input should be a finite number"),
    ],
)
def test_an_invalid_settings_file_is_named(tmp_path: Path, content: bytes, sentence: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(content)
    with pytest.raises(SettingsError) as refusal:
        load_settings(file)
    assert str(refusal.value).startswith(sentence.format(file=file))


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read .*/none\.toml: No such file or directory"):
        load_settings(tmp_path / "none.toml")
    with pytest.raises(SettingsError, match=r"cannot read .*: Is a directory"):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("pipe", "found a pipe"),
        ("device", "found a device"),
        ("folder", "Is a directory"),
        ("huge", "found more than 1,048,576 bytes"),
        ("nested", "nested too deeply"),
        ("nested tables", "nested too deeply|is not a setting"),
    ],
)
def test_what_is_no_file_of_settings_is_one_sentence(kind: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        nested = {"huge": "# " + "x" * 2**20, "nested": f"x = {'[' * 10_000}", "nested tables": "a." * 2_000 + "b = 1"}
        path.write_text(nested[kind])
    with pytest.raises(SettingsError, match=reason) as refusal:
        load_settings(path)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) < 1000


def test_the_machine_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[None] = []

    def look() -> Limit:
        looks.append(None)
        return Limit(4)

    monkeypatch.setattr("async_maps.settings.cores", look)
    settings = Settings()
    assert (settings.worker_count, settings.encode_thread_count) == (2, 4)
    assert settings.queue_size > settings.chunk_size > 0
    copy = settings.model_copy(update={"workers": 7})
    assert (copy.worker_count, settings.reductions) == (7, ())
    assert len(looks) == 1
    assert settings == Settings()
