"""A run with a new manifest looks for the overlays of other runs under its first keys."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import async_maps as am
from async_maps.manifest.manifest import Manifest
from async_maps.manifest.metadata import KeptRun
from async_maps.manifest.recorder import open_recorder
from async_maps.pipeline.first_keys import FirstKeys
from async_maps.render.ranges import UNIT
from async_maps.stores import open_store
from async_maps.stores.s3 import S3Store
from tests.support.commands import invoke, only_error
from tests.support.entries import save_map
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import make_map
from tests.support.maps import MAP, random_map
from tests.support.s3 import objects
from tests.support.s3_proxy import Refusal, counting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from async_maps.demo.seaweed import S3Server

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

_EXIST = re.compile(r" exists? already, ")


@pytest.fixture(params=["s3", "folder"])
def destination(request: pytest.FixtureRequest, bucket: str, tmp_path: Path) -> str:
    return f"s3://{bucket}/p" if request.param == "s3" else (tmp_path / "out").as_uri()


def run(destination: str, manifest: Path, *names: str, select: Any = "changed", seed: int = 0, **settings: Any) -> Any:
    return am.run(
        [(name, random_map(seed + number)) for number, name in enumerate(names)],
        destination,
        manifest=manifest,
        select=select,
        settings=am.Settings(workers=0, **settings),
    )


def stored(destination: str) -> dict[str, bytes]:
    """Return the bytes of the overlays at a destination by key."""
    if destination.startswith("s3://"):
        bucket = destination.split("/")[2]
        return {key: data for key, (data, _) in asyncio.run(objects(bucket)).items()}
    folder = Path(destination.removeprefix("file://"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def notices(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if _EXIST.search(record.getMessage())]


def test_a_new_manifest_says_once_that_it_replaces_overlays(
    destination: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(destination, tmp_path / "a.sqlite", "x", "y", "z")
    assert notices(caplog) == []
    report = run(destination, tmp_path / "b.sqlite", "x", "y", "other", seed=9)
    (notice,) = notices(caplog)
    assert notice.startswith(destination)
    assert f"{destination}/x.png" in notice
    assert f"and {tmp_path / 'b.sqlite'} does not list " in notice
    assert "choose another prefix" in notice
    assert "--if-exists skip or error" in notice
    assert (report.uploaded, report.warnings) == (3, [notice])


def test_repeated_runs_are_quiet(destination: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for select in ("changed", "changed", "all", "failed"):
        run(destination, tmp_path / "a.sqlite", "x", "y", select=select)
    am.repair_overlays(tmp_path / "a.sqlite")
    assert notices(caplog) == []


def test_a_manifest_of_failed_maps_only_asks_again(
    destination: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(destination, tmp_path / "a.sqlite", "x")
    settings = am.Settings(workers=0)
    am.run([("x", MAP * 100)], destination, manifest=tmp_path / "b.sqlite", settings=settings)
    caplog.clear()
    run(destination, tmp_path / "b.sqlite", "x", range="per-map")
    assert len(notices(caplog)) == 1


def test_with_error_nothing_is_written_if_an_overlay_exists(destination: str, tmp_path: Path) -> None:
    run(destination, tmp_path / "a.sqlite", "x", "y")
    before = stored(destination)
    # What was refused is not the run's own, however often it is repeated.
    for _ in range(2):
        with pytest.raises(am.SettingsError, match="choose another prefix, or use --if-exists skip"):
            run(destination, tmp_path / "b.sqlite", "x", "new", seed=9, if_exists="error")
    assert stored(destination) == before
    assert run(f"{destination}/q", tmp_path / "b.sqlite", "x", "new", if_exists="error").uploaded == 2


def test_the_command_ends_with_2_and_leaves_what_exists(
    destination: str, maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_map(maps / "x.npy")
    command = ("run", maps, destination, "--workers", 0, "--progress", "none")
    assert invoke(*command, "--manifest", tmp_path / "a.sqlite") == 0
    capsys.readouterr()
    assert invoke(*command, "--manifest", tmp_path / "b.sqlite", "--if-exists", "error") == 2
    assert only_error(capsys.readouterr()) == (
        f"async-maps: error: {destination}/x.png exists already, and {tmp_path / 'b.sqlite'} does not list it: "
        "choose another prefix, or use --if-exists skip"
    )


def test_skip_asks_for_no_key(destination: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(destination, tmp_path / "a.sqlite", "x")
    assert run(destination, tmp_path / "b.sqlite", "x", if_exists="skip").uploaded == 1
    assert notices(caplog) == []


@pytest.mark.parametrize("colormap", ["jet", "viridis"])
def test_what_a_killed_run_may_have_sent_is_its_own(
    colormap: str, destination: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = am.Settings()
    run(destination, tmp_path / "a.sqlite", "x")
    with Manifest(tmp_path / "a.sqlite", read_only=True) as opened:
        identity = opened.destination()
    assert identity is not None
    with Manifest(tmp_path / "killed.sqlite") as opened:
        opened.begin(identity)
        opened.keep_run(KeptRun(None, settings.fingerprint(), settings.shaping(UNIT)))
        opened.note_sending([make_map("x")], settings.fingerprint())
    run(destination, tmp_path / "killed.sqlite", "x", colormap=colormap)
    assert notices(caplog) == []


def test_what_was_sent_elsewhere_is_not_the_runs_own(
    destination: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = am.Settings()
    run(destination, tmp_path / "a.sqlite", "x")
    with Manifest(tmp_path / "killed.sqlite") as opened:
        opened.begin("s3://elsewhere/p")
        opened.keep_run(KeptRun(None, settings.fingerprint(), settings.shaping(UNIT)))
        opened.note_sending([make_map("x")], settings.fingerprint())
    run(destination, tmp_path / "killed.sqlite", "x")
    assert len(notices(caplog)) == 1


def test_positions_as_keys_do_not_replace_overlays_of_others(
    destination: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(destination, tmp_path / "a.sqlite", "x", "y", key="{index:03}.png")
    before = stored(destination)
    with pytest.raises(am.SettingsError, match=r"use \{name\} in the key, or choose another prefix"):
        run(destination, tmp_path / "b.sqlite", "v", "w", key="{index:03}.png")
    assert stored(destination) == before
    # Its own are replaced, and those of a folder of its own are new.
    assert run(destination, tmp_path / "a.sqlite", "x", "y", key="{index:03}.png", select="all").uploaded == 2
    assert run(destination, tmp_path / "b.sqlite", "v", "w", key="b/{index:03}.png").uploaded == 2
    assert notices(caplog) == []


def test_positions_beside_names_are_not_refused(destination: str, tmp_path: Path) -> None:
    for manifest in ("a.sqlite", "b.sqlite"):
        assert run(destination, tmp_path / manifest, "x", key="{index}-{name}.png").uploaded == 1


async def test_a_second_map_with_one_key_is_not_taken_for_another_run(
    destination: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = am.Settings(workers=0, key="{stem}.png", if_exists="error")

    async def source() -> AsyncIterator[tuple[str, Any]]:
        yield "a/1", MAP
        while pipeline.statistics().uploaded < 1:  # noqa: ASYNC110  # it is counted, not announced
            await asyncio.sleep(0.01)
        yield "b/1", MAP

    async with am.Pipeline(destination, settings=settings) as pipeline:
        report = await pipeline.run(source(), manifest=tmp_path / "a.sqlite")
    assert [failure.name for failure in report.failures] == ["b/1"]
    assert "is the overlay of another map, 'a/1'" in report.failures[0].reason
    assert notices(caplog) == []


def test_a_store_that_refuses_heads_is_not_asked_further(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run(f"s3://{bucket}/p", tmp_path / "a.sqlite", "x", "y")
    with counting(s3, monkeypatch) as proxy:
        proxy.refuse = lambda method, *_: Refusal(403) if method == "HEAD" else None
        assert run(f"s3://{bucket}/p", tmp_path / "b.sqlite", "x", "y").uploaded == 2
    assert notices(caplog) == []


def test_at_most_32_keys_are_asked_for_once(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number:02}" for number in range(40)]
    with counting(s3, monkeypatch) as proxy:
        for _ in range(2):
            run(f"s3://{bucket}/p", tmp_path / "a.sqlite", *names, select="all")
        asked = [asked.path for asked in proxy.asked if asked.method == "HEAD" and asked.path.count("/") > 2]
    assert sorted(asked) == [f"/{bucket}/p/{name}.png" for name in names[:32]]


async def test_keys_are_asked_for_concurrently(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, asked, all_asked = S3Store.head, 0, asyncio.Event()

    async def head(self: S3Store, key: str) -> Any:
        nonlocal asked
        asked += 1
        if asked == 32:
            all_asked.set()
        await all_asked.wait()
        return await original(self, key)

    monkeypatch.setattr(S3Store, "head", head)
    settings = am.Settings()
    async with (
        open_store(f"s3://{bucket}/p", settings) as store,
        open_recorder(tmp_path / "a.sqlite", store.identity) as recorder,
    ):
        assert recorder is not None
        first_keys = FirstKeys(recorder, store, settings, am.Report())
        await first_keys.check([make_map(f"{number}") for number in range(50)])
        await first_keys.check([make_map("later")])
    assert asked == 32
