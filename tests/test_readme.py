"""The README's commands and code run as they stand there; those that install or measure are run by .ci/run."""

from __future__ import annotations

import asyncio
import re
import shlex
from contextlib import nullcontext
from pathlib import Path

import aioboto3
import numpy as np
import pytest

import async_maps as am
from async_maps.demo import seaweed
from tests.support.commands import invoke
from tests.support.kolena_service import serve_kolena
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


async def buckets() -> set[str]:
    async with aioboto3.Session().client("s3") as client:
        return {bucket["Name"] for bucket in (await client.list_buckets())["Buckets"]}


@pytest.fixture
def folder(tmp_path: Path, s3: seaweed.S3Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with maps/, configs/ and results.csv in it, and the README's bucket."""
    if "my-bucket" not in asyncio.run(buckets()):
        asyncio.run(seaweed.create_bucket(s3, "my-bucket"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for i in range(5):
        path = tmp_path / "maps" / "val" / f"{i:04}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, random_map(i))
    rows = [f"val/{i:04},cat,{i / 5 or ''}" for i in range(5)]
    (tmp_path / "results.csv").write_text("\n".join(["image,label,score", *rows]))
    return tmp_path


def test_every_shell_command_runs_here_or_in_ci(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Worker processes, a second each time, are for other tests.
    monkeypatch.setenv("ASYNC_MAPS_WORKERS", "0")
    commands = [line for block in blocks("bash") for line in block.splitlines() if line]
    ours = [command for command in commands if command.startswith("async-maps ")]
    for command in ours:
        assert invoke(*shlex.split(command)[1:]) == 0, command
    assert (folder / "locators.csv").exists()
    assert (folder / "report.json").exists()
    ci = (ROOT / ".ci" / "run").read_text()
    patterns = re.findall(r"\breadme '(.*?)'", ci)
    assert len(patterns) == len(commands) - len(ours)
    for command in set(commands) - set(ours):
        assert any(re.search(pattern, command) for pattern in patterns), command


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[-1][:40])
@pytest.mark.usefixtures("folder")
def test_the_code_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "async-maps.sqlite" in code:
        # As the commands above it leave it.
        settings = am.Settings(workers=0)
        am.run("maps", "s3://my-bucket/overlays", settings=settings, manifest="async-maps.sqlite")
    with serve_kolena() if "from kolena" in code else nullcontext() as service:
        exec(compile(code, "README.md", "exec", dont_inherit=True), {"__name__": "readme"})  # noqa: S102  # our own README
    if "print" in code:
        assert capsys.readouterr().out
    if service is not None and "upload_results(" in code:
        (upload,) = service.results
        locators = {
            row["datapoint_id_object"]["image"]: row["result"]["activation_map"]["locator"] for row in upload["rows"]
        }
        assert locators == {f"val/{i:04}": f"s3://my-bucket/overlays/val/{i:04}.png" for i in range(5)}


PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for pattern in ("*.md", ".github/*.md", "*/README.md", "async_maps/*/README.md")
    for page in ROOT.glob(pattern)
)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    # As GitHub makes them of headings.
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors
        else:
            assert target.startswith("https://") or (ROOT / page).parent.joinpath(target).exists(), target


def test_every_path_that_contributors_are_led_to_is_there() -> None:
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:async_maps|tests|bench|\.ci)/[\w./]*)`", text)
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).exists()] == []
