"""The metrics of a run: scraped from its port and read from its file, with Prometheus' own parser."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("prometheus_client")

import yaml
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

import async_maps as am
from async_maps.cli.metrics import MetricsOptions, RunMetrics
from tests.support.commands import COMMAND, invoke, only_error
from tests.support.documents import ROOT
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map
from tests.support.pipelines import THREADS, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


def values(text: str) -> dict[str, float]:
    """Return the values of a scrape: ``{"async_maps_uploads_total": 3, "async_maps_stage_maps_total upload": 3}``."""
    return {
        f"{sample.name} {sample.labels.get('stage', '')}".strip(): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310  # our own server
        return str(answer.read().decode())


@contextmanager
def waiting_run(*arguments: object) -> Iterator[tuple[IO[str], str]]:
    """Start a run that waits for paths on standard input; give that, and the address of its metrics."""
    command = [*COMMAND, "run", "-", "out", "--workers", "0", "--progress", "json", *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdin is not None
        assert running.stderr is not None
        while not (url := json.loads(running.stderr.readline()).get("url", "")):
            pass
        yield running.stdin, url
        running.stdin.close()
        running.stderr.read()


def scraped_when(url: str, name: str, least: float) -> str:
    """Scrape until a value is reached."""
    while values(text := scrape(url)).get(name, -1) < least:
        time.sleep(0.1)
    return text


def test_a_run_is_scraped_while_it_goes_on(maps: Path) -> None:
    for i in range(3):
        np.save(maps / f"{i}.npy", random_map(i))
    (maps / "empty.npy").touch()
    with waiting_run("--metrics-port", 0) as (paths, url):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", url)
        before = values(scraped_when(url, "async_maps_uploads_total", 0))
        assert (before["async_maps_uploads_total"], before["async_maps_run_running"]) == (0, 1)
        paths.writelines(f"{path}\n" for path in sorted(maps.iterdir()))
        paths.flush()
        after = values(scraped_when(url, "async_maps_uploads_total", 3))
        assert after["async_maps_failures_total"] == 1
        assert after["async_maps_stage_maps_total upload"] == 3
        # The time is taken with the next report, a moment later.
        scraped_when(
            url, "async_maps_run_progress_timestamp_seconds", before["async_maps_run_progress_timestamp_seconds"] + 1e-6
        )
        # OpenMetrics, for those who ask for it.
        request = urllib.request.Request(url, headers={"Accept": "application/openmetrics-text; version=1.0.0"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            text = answer.read().decode()
        assert "async_maps_uploads" in {family.name for family in openmetrics.text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]
        with pytest.raises(urllib.error.HTTPError, match="404"):
            scrape(url.replace("/metrics", "/other"))


def test_bad_and_silent_clients_do_not_hold_the_end_of_a_run(maps: Path) -> None:
    np.save(maps / "a.npy", random_map(1))
    with waiting_run("--metrics-port", 0) as (paths, url):
        port = int(url.split(":")[2].partition("/")[0])
        with closing(socket.create_connection(("127.0.0.1", port))) as rude:
            rude.sendall(b"\xff\n\r\n\r\n")
            assert rude.recv(1) == b""
        with closing(socket.create_connection(("127.0.0.1", port))) as long:
            long.sendall(b"GET /" + b"x" * 20_000)
        silent = socket.create_connection(("127.0.0.1", port))
        assert "async_maps_run_running" in scrape(url)
        paths.write(f"{maps}/a.npy\n")
    with closing(silent):
        assert [path.name for path in Path("out").rglob("*.png")] == ["a.png"]


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=bogus", "text/plain;;=;version;escaping=="])
def test_no_header_ends_the_server(accept: str, maps: Path) -> None:
    with waiting_run("--metrics-port", 0) as (_, url):
        with (
            suppress(OSError),
            urllib.request.urlopen(  # noqa: S310
                urllib.request.Request(url, headers={"Accept": accept}),  # noqa: S310
                timeout=60,
            ),
        ):
            pass
        assert "async_maps_run_running" in scrape(url)


def test_the_number_of_idle_clients_is_bounded(maps: Path) -> None:
    with waiting_run("--metrics-port", 0) as (_, url), ExitStack() as clients:
        port = int(url.split(":")[2].partition("/")[0])
        idle = [clients.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(40)]
        idle[-1].settimeout(60)
        assert idle[-1].recv(1) == b""


def test_the_server_leaves_no_thread_and_no_socket(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(maps / "a.npy", random_map(1))
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    for _ in range(2):
        assert invoke("run", maps, "out", "--workers", 0, "--metrics-port", port) == 0
        assert f"async-maps: metrics: http://127.0.0.1:{port}/metrics" in capsys.readouterr().err


def test_a_port_in_use_is_one_sentence_before_the_run(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(maps / "a.npy", random_map(1))
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        assert invoke("run", maps, "out", "--workers", 0, "--metrics-port", port) == 2
    error = only_error(capsys.readouterr())
    assert f"cannot serve metrics on 127.0.0.1 port {port}: " in error
    assert "choose another --metrics-port" in error
    assert not Path("out").exists()
    assert not Path("async-maps.sqlite").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--metrics-port 65536", "--metrics-port"),
        ("--metrics-host 0.0.0.0", "--metrics-host needs --metrics-port"),
        ("--metrics-port 0 --metrics-host ''", "--metrics-host is empty"),
        ("--metrics-host no.invalid --metrics-port 0", "cannot serve metrics on no.invalid port 0: "),
        ("--metrics-textfile x.txt", "node_exporter reads files named *.prom only"),
        ("--metrics-textfile none/x.prom", "cannot write the metrics to none/x.prom: the folder does not exist"),
        ("--metrics-textfile pipe.prom", "expected a file, found a pipe"),
        ("--metrics-textfile notes.prom", "notes.prom, a file of another kind"),
        ("--manifest m.prom --metrics-textfile m.prom", "the metrics would replace the manifest"),
    ],
)
def test_wrong_options_are_refused_before_the_run(
    options: str, said: str, maps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(maps / "a.npy", random_map(1))
    Path("notes.prom").write_text("mine")
    os.mkfifo("pipe.prom")
    assert invoke("run", maps, "out", "--workers", 0, *shlex.split(options)) == 2
    assert said in only_error(capsys.readouterr())
    assert not Path("out").exists()
    assert Path("notes.prom").read_text() == "mine"


def test_the_textfile_is_whole_at_every_moment_and_stays(maps: Path) -> None:
    np.save(maps / "a.npy", random_map(1))
    with waiting_run("--metrics-port", 0, "--metrics-textfile", "x.prom") as (paths, url):
        while not Path("x.prom").exists():
            time.sleep(0.01)
        first = values(Path("x.prom").read_text())
        assert first["async_maps_run_running"] == 1
        paths.write(f"{maps}/a.npy\n")
        paths.flush()
        while values(Path("x.prom").read_text()).get("async_maps_uploads_total") != 1:
            time.sleep(0.1)
        running = Path("x.prom").read_text()
        assert running.endswith("\n")
        assert values(running).keys() == values(scrape(url)).keys()
    last = values(Path("x.prom").read_text())
    assert (last["async_maps_run_running"], last["async_maps_uploads_total"]) == (0, 1)
    # node_exporter runs as another user, and no part of a file is left.
    assert Path("x.prom").stat().st_mode & 0o044 == 0o044
    assert [path.name for path in Path().iterdir() if path.name.startswith(".async-maps")] == []


def test_a_run_that_cannot_start_writes_that_it_has_ended(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("run", maps / "none", "out", "--workers", 0, "--metrics-textfile", "x.prom") == 2
    only_error(capsys.readouterr())
    assert values(Path("x.prom").read_text())["async_maps_run_running"] == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_textfile_on_a_full_disk_is_no_wrong_use(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(maps / "a.npy", random_map(1))
    Path("x.prom").symlink_to("/dev/full")
    assert invoke("run", maps, "out", "--workers", 0, "--metrics-textfile", "x.prom") == 3
    assert "cannot write the metrics to x.prom: No space left on device" in only_error(capsys.readouterr())


def test_the_dashboard_and_the_alerts_name_metrics_that_exist(maps: Path) -> None:
    np.save(maps / "a.npy", random_map(1))
    with waiting_run("--metrics-port", 0) as (paths, url):
        paths.write(f"{maps}/a.npy\n")
        paths.flush()
        known = set(re.findall(r"^(async_maps_\w+)", scraped_when(url, "async_maps_uploads_total", 1), re.MULTILINE))
        helped = set(re.findall(r"^# TYPE (async_maps_\w+)", scrape(url), re.MULTILINE))
    dashboard = json.loads((ROOT / "configs/grafana-dashboard.json").read_text())
    (group,) = yaml.safe_load((ROOT / "configs/prometheus-alerts.yaml").read_text())["groups"]
    named = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named += [variable["query"]["query"] for variable in dashboard["templating"]["list"][1:]]
    assert len(named) > 10
    rules = [rule["expr"] for rule in group["rules"]]
    assert len(rules) == 3
    for expression in named + rules:
        found = set(re.findall(r"async_maps_\w+", expression))
        assert found
        assert found <= known | helped, expression


async def test_a_textfile_that_cannot_be_written_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="async_maps.cli")
    monkeypatch.setattr("async_maps.cli.metrics._INTERVAL_S", 0.001)
    path = tmp_path / "metrics" / "x.prom"
    path.parent.mkdir()

    def levels() -> list[int]:
        return [record.levelno for record in caplog.records if "cannot write the metrics to" in record.getMessage()]

    async with (
        am.Pipeline(am.MemoryStore(), settings=THREADS) as pipeline,
        RunMetrics(pipeline, "x").exposed(MetricsOptions(textfile=path)),
    ):
        shutil.rmtree(path.parent)
        await until(lambda: len(levels()) >= 5)
    assert levels().count(logging.WARNING) == 1
