"""configs/: default.toml has every setting at its default, and each file loads and works."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import async_maps as am
from async_maps.cli.app import main
from async_maps.settings import setting_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONFIGS = Path(__file__).parent.parent / "configs"


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and name not in {"metadata", "tagging"}:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def test_default_toml_has_every_setting_at_its_default() -> None:
    text = (CONFIGS / "default.toml").read_text()
    shown = tomllib.loads(text)
    assert am.Settings(**shown) == am.Settings()
    defaults = flat(am.Settings().model_dump())
    assert set(flat(shown)) == {name for name, value in defaults.items() if value is not None}
    # Settings without a default are in the file as comments that can be loaded.
    everything = flat(tomllib.loads(re.sub(r"(?m)^# (\w+ = )", r"\1", text)))
    assert set(everything) == set(setting_names())
    assert am.Settings(**tomllib.loads(re.sub(r"(?m)^# (\w+ = )", r"\1", text))).max_failures == 100


GENERAL = ("default.toml", "local.toml", "service.toml")


@pytest.mark.parametrize("config", GENERAL)
def test_each_config_runs(config: str, maps: Path, tmp_path: Path) -> None:
    for i in range(5):
        np.save(maps / f"{i}.npy", np.random.default_rng(i).random((20, 20)))
    report = am.run(maps, tmp_path / "out", settings=am.load_settings(CONFIGS / config))
    assert (report.uploaded, report.failed) == (5, 0)


# The recipes ------------------------------------------------------------------------------------------------------


def test_every_config_file_is_tested() -> None:
    recipes = {"gradcam.toml", "signed-saliency.toml", "segmentation-probability.toml", "compare-models.toml"}
    assert {path.name for path in CONFIGS.glob("*.toml")} == {*GENERAL, *recipes}


def overlay(folder: Path, name: str) -> NDArray[np.uint8]:
    (path,) = folder.glob(f"{name}*.png")
    with Image.open(path) as image:
        return np.asarray(image.convert("RGBA"))


def test_gradcam_colors_do_not_depend_on_the_scale(maps: Path, tmp_path: Path) -> None:
    cam = np.maximum(np.random.default_rng(0).standard_normal((7, 9)), 0)
    spoilt = cam.astype(np.float16)
    spoilt[0, 0] = np.inf
    np.save(maps / "a.npy", cam * 1e-3)
    np.save(maps / "b.npy", cam * 4e3)
    np.save(maps / "c.npy", spoilt)
    out = tmp_path / "out"
    report = am.run(maps, out, settings=am.load_settings(CONFIGS / "gradcam.toml"))
    assert (report.uploaded, report.failed) == (3, 0)
    np.testing.assert_array_equal(overlay(out, "a"), overlay(out, "b"))
    shown = overlay(out, "a")
    assert shown[np.unravel_index(cam.argmax(), cam.shape)].tolist() == [128, 0, 0, 254]
    assert (shown[cam == 0, 3] == 0).all()
    assert overlay(out, "c")[0, 0, 3] == 0


def test_signed_saliency_shows_both_signs_and_hides_zero(maps: Path, tmp_path: Path) -> None:
    saliency = np.array([[-3.0, -1.5, 0.0], [1.5, 3.0, np.nan]], np.float32)
    np.save(maps / "a.npy", saliency)
    np.save(maps / "b.npy", saliency * 1e6)
    out = tmp_path / "out"
    report = am.run(maps, out, settings=am.load_settings(CONFIGS / "signed-saliency.toml"))
    assert (report.uploaded, report.invalid) == (2, 2)
    shown = overlay(out, "a")
    np.testing.assert_array_equal(shown, overlay(out, "b"))
    assert shown[0, 0].tolist() == [0x21, 0x66, 0xAC, 255]
    assert shown[1, 1].tolist() == [0xB2, 0x18, 0x2B, 255]
    assert shown[0, 2, 3] <= 2
    assert shown[1, 2, 3] == 0
    assert shown[0, 1, 2] > shown[0, 1, 0]
    assert shown[1, 0, 0] > shown[1, 0, 2]


def test_changed_segmentation_probabilities_get_a_new_locator(maps: Path, tmp_path: Path) -> None:
    settings = am.load_settings(CONFIGS / "segmentation-probability.toml")
    out = tmp_path / "out"
    for i in range(2):
        np.save(maps / "a.npy", np.full((4, 4), (i + 1) / 4))
        np.save(maps / "logits.npy", np.full((4, 4), 7.0))
        report = am.run(maps, out, settings=settings)
        assert (report.uploaded, report.failed) == (1, 1)
    first, second = out.glob("a.*.png")
    assert first.read_bytes() != second.read_bytes()
    for path in (first, second):
        assert path.name == f"a.{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.png"
    with Image.open(first) as image:
        assert (np.asarray(image.convert("RGBA"))[..., 3] == round(0.6 * 255)).all()


def test_two_models_are_colored_by_the_same_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for model, scale in (("model-a", 5.0), ("model-b", 8.0)):
        Path(model).mkdir()
        for i in range(20):
            np.save(f"{model}/{i}.npy", rng.standard_normal((16, 16)) * scale)
    both = np.full((16, 16), 2.5)
    np.save("model-a/both.npy", both)
    np.save("model-b/both.npy", both)
    config = (CONFIGS / "compare-models.toml").read_text()
    for model in ("model-a", "model-b"):
        # The command in the recipe's comment.
        (command,) = re.findall(rf"^#   async-maps (run {model}/ .*)$", config, re.MULTILINE)
        command = command.replace("configs/", f"{CONFIGS}/").replace("s3://bucket/", "out/")
        with pytest.raises(SystemExit) as ended:
            main([*command.split(), "--progress", "none"])
        assert ended.value.code == 0
    np.testing.assert_array_equal(overlay(Path("out/model-a"), "both"), overlay(Path("out/model-b"), "both"))
    am.export_manifest("model-b.sqlite", "b.jsonl")
    rows = [json.loads(line) for line in Path("b.jsonl").read_text().splitlines()]
    spans = {(row["range_low"], row["range_high"]) for row in rows}
    ((low, high),) = spans
    assert low == pytest.approx(-5 * 2.33, rel=0.1)
    assert high == pytest.approx(5 * 2.33, rel=0.1)
