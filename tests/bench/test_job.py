"""``python -m bench job``: its sources have the same maps, and a contender that loses a map is found."""

from __future__ import annotations

import urllib.request
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bench import sink
from bench.job import Contender, Source, measure
from bench.measure import Usage, order
from bench.scripts import Boto3, Client, Obstore, maps_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

COUNT, SIZE = 5, 8


def obstore() -> Client:
    pytest.importorskip("obstore")
    return Obstore("bench")


def boto3() -> Client:
    pytest.importorskip("boto3")
    return Boto3("bench", 1)


@pytest.mark.parametrize(
    ("kind", "client"), [("files", None), ("stack", None), ("s3", obstore), ("s3", boto3)],
    ids=["files", "stack", "obstore", "boto3"],
)  # fmt: skip
def test_scripts_read_the_same_maps_from_each_source(
    kind: str, client: Callable[[], Client] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(tmp_path, kind, SIZE, 2)
    with sink.serve(objects=source.objects) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        maps = {name: read() for name, read in maps_of(source.of(COUNT), client() if client else None)}
        counts = server.counts()
    assert list(maps) == [f"{index:06}" for index in range(COUNT)]
    for index, values in enumerate(maps.values()):
        np.testing.assert_array_equal(values, np.load(tmp_path / f"files/{index % 2:06}.npy"))
    assert (counts["gets"], counts["lists"]) == ((COUNT, 1) if client else (0, 0))


def put(server: sink.Sink, count: int, source: str, environment: Mapping[str, str]) -> Usage:
    assert environment == server.environment()
    for number in range(1 if source.endswith("start") else count):
        request = urllib.request.Request(f"{server.url}/bench/{number}", b"x" * 2_000, method="PUT")  # noqa: S310
        urllib.request.urlopen(request).close()  # noqa: S310  # loopback
    return Usage(3.0, 1.0, 0, "", 0.0) if source.endswith("start") else Usage(5.0, 2.0, 10**6, "", 0.0)


def test_figures_are_per_map_and_net_ones_exclude_the_start(tmp_path: Path) -> None:
    source = Source(tmp_path, "files", SIZE, 1)
    with sink.serve() as server:
        contenders = {"all": Contender(partial(put, server, 4), 4), "once": Contender(partial(put, server, 2), 2, True)}
        found = measure(contenders, source, server, 2, net=True)
    assert found["all"] == {
        "maps/s": [0.8, 0.8], "CPU ms/map": [500.0, 500.0], "peak MB": [1.0, 1.0], "net maps/s": [2.0, 2.0],
        "net CPU ms/map": [250.0, 250.0], "start s": [3.0, 3.0], "start CPU s": [1.0, 1.0],
        "KB/map": [2.0, 2.0], "requests/map": [1.0, 1.0],
    }  # fmt: skip
    assert found["once"]["maps/s"] == [0.4]


def test_a_contender_that_loses_a_map_is_found(tmp_path: Path) -> None:
    source = Source(tmp_path, "files", SIZE, 1)
    with sink.serve() as server, pytest.raises(RuntimeError, match="3 PUTs of 4 maps"):
        measure({"lossy": Contender(partial(put, server, 3), 4)}, source, server, 1, net=False)


def test_every_second_round_is_reversed() -> None:
    assert [order({"a": 1, "b": 2}, turn) for turn in range(3)] == [["a", "b"], ["b", "a"], ["a", "b"]]
