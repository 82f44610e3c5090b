"""configs/: the default is every setting at its default, and each file loads and works."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import BaseModel

import async_maps as am

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIGS = Path(__file__).parent.parent / "configs"


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and name != "metadata":
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def test_default_toml_shows_every_setting_at_its_default() -> None:
    text = (CONFIGS / "default.toml").read_text()
    shown = flat(tomllib.loads(text))
    defaults = flat(am.Settings().model_dump())
    assert shown == {name: value for name, value in defaults.items() if value is not None}
    # What has no default is there too, as a comment that would load.
    everything = flat(tomllib.loads(re.sub(r"(?m)^# (\w+ = )", r"\1", text)))
    assert set(everything) == set(fields(am.Settings))
    assert am.Settings(**tomllib.loads(re.sub(r"(?m)^# (\w+ = )", r"\1", text))).max_failures == 100


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_each_config_runs(config: Path, maps: Path, tmp_path: Path) -> None:
    for i in range(5):
        np.save(maps / f"{i}.npy", np.random.default_rng(i).random((20, 20)))
    report = am.run(maps, tmp_path / "out", settings=am.load_settings(config))
    assert (report.uploaded, report.failed) == (5, 0)
