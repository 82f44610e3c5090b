"""The commands and the code of every README.md run as they stand; .ci/run runs those that install or measure."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sqlite3
import subprocess
import tomllib
from contextlib import closing, nullcontext, redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import aioboto3
import numpy as np
import pytest
import yaml

import async_maps as am
from async_maps.cli import view
from async_maps.demo import seaweed
from async_maps.filesystems.objects import Objects
from tests.support.commands import invoke
from tests.support.documents import (
    PAGES,
    READMES,
    ROOT,
    anchors,
    blocks,
    check_command,
    code,
    commands,
    links,
    ours_within,
    read,
    unknown_variables,
)
from tests.support.kolena_service import serve_kolena
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map

LANGUAGES = {"bash", "console", "json", "py", "python", "sql", "text", "toml", "yaml"}
"""``py`` is for signatures and fragments, and ``text`` for output: neither is run."""

OUTSIDE = {
    "async_maps/sources/README.md": {"find"},
    "async_maps/viewer/README.md": {"ssh"},
    "configs/README.md": {"aws", "az", "docker", "export", "gcloud", "kubectl"},
}
"""The pages with ``console`` blocks, which are parsed and not run, and the first words of their commands."""


def in_pages(*languages: str) -> list[object]:
    """A parameter for each block of some languages."""
    return [
        pytest.param(page, text, id=f"{page}: {text.splitlines()[0][:40]}")
        for page in READMES
        for language, text in code(page)
        if language in languages
    ]


async def buckets() -> set[str]:
    async with aioboto3.Session().client("s3") as client:
        return {bucket["Name"] for bucket in (await client.list_buckets())["Buckets"]}


@pytest.fixture
def folder(tmp_path: Path, s3: seaweed.S3Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory for a page: maps/, configs/, results.csv, a bucket, and a manifest of a first run."""
    if "my-bucket" in asyncio.run(buckets()):
        with Objects() as objects:
            objects.delete([found.locator for found in objects.below("s3://my-bucket/")], "s3://my-bucket/")
    else:
        asyncio.run(seaweed.create_bucket(s3, "my-bucket"))
    monkeypatch.chdir(tmp_path)
    # Worker processes, a second each time, are for other tests.
    monkeypatch.setenv("ASYNC_MAPS_WORKERS", "0")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for i in range(5):
        path = tmp_path / "maps" / "val" / f"{i:04}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, random_map(i))
    (tmp_path / "images").mkdir()
    rows = [f"val/{i:04},cat,{i / 5 or ''}" for i in range(5)]
    (tmp_path / "results.csv").write_text("\n".join(["image,label,score", *rows]))
    am.run("maps", "s3://my-bucket/overlays", settings=am.Settings(workers=0), manifest="async-maps.sqlite")
    return tmp_path


@pytest.mark.parametrize("page", READMES)
def test_every_block_names_a_known_language(page: str) -> None:
    assert {language for language, _ in code(page)} <= LANGUAGES


@pytest.mark.parametrize("page", [page for page in READMES if blocks(page, "bash") or blocks(page, "python")])
def test_every_page_runs_from_top_to_bottom(page: str, s3: seaweed.S3Server, request: pytest.FixtureRequest) -> None:
    # The zarr library keeps a thread.
    if "import zarr" not in read(page):
        request.getfixturevalue(leaves_nothing.__name__)
    request.getfixturevalue("folder")
    missing: set[str] = set()
    lacking: set[str] = set()
    for language, text in code(page):
        if language == "bash" and not lacking:
            # A command after code that was not run may lack its files.
            run_bash(text)
        elif language == "python":
            lacking = {name for name in imported(text) if find_spec(name) is None}
            missing |= lacking
            if not lacking:
                run_python(page, text)
    if missing:
        pytest.skip(f"{', '.join(sorted(missing))} is not installed; all other blocks ran")


def run_bash(text: str) -> None:
    """Run our commands in a block; those of others are for .ci/run."""
    for command in commands(text):
        if command.is_ours:
            with pytest.MonkeyPatch.context() as patch:
                for name, value in command.environment.items():
                    patch.setenv(name, value)
                if command.words[1] == "view":
                    # It waits for Ctrl-C.
                    patch.setattr(view, "Event", partial(SimpleNamespace, wait=lambda: None))
                    patch.delenv("DISPLAY", raising=False)
                assert invoke(*command.words[1:]) == 0, command.line
            for name in command.words[2:]:
                if name.endswith((".csv", ".json", ".jsonl", ".parquet")):
                    assert Path(name).exists(), f"{command.line} has not written {name}"


def run_python(page: str, text: str) -> None:
    """Run a block; it prints something if its last lines say so."""
    printed = io.StringIO()
    with serve_kolena() if "from kolena" in text else nullcontext() as service, redirect_stdout(printed):
        exec(compile(text, page, "exec", dont_inherit=True), {"__name__": "readme"})  # noqa: S102  # our own page
    assert printed.getvalue() or not re.search(r"^print", text, re.MULTILINE), text
    if service is not None and "upload_results(" in text:
        (upload,) = service.results
        locators = {
            row["datapoint_id_object"]["image"]: row["result"]["activation_map"]["locator"] for row in upload["rows"]
        }
        assert locators == {f"val/{i:04}": f"s3://my-bucket/overlays/val/{i:04}.png" for i in range(5)}


def imported(text: str) -> set[str]:
    """The packages that Python code imports."""
    return set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE))


def test_ci_runs_every_other_command() -> None:
    lines = {
        re.sub(r"\s+#.*", "", line)
        for page in READMES
        for block in blocks(page, "bash")
        for line in block.splitlines()
        if any(not command.is_ours for command in commands(line))
    }
    # The slow tests run these.
    lines -= {line for line in lines if re.fullmatch(r"python -m async_maps\.examples\.(?!gradcam$)\w+", line)}
    patterns = set(re.findall(r"\breadme '(.*?)'", read(".ci/run")))
    assert {line for line in lines if not any(re.search(pattern, line) for pattern in patterns)} == set()
    # As many as one line is what .ci/run takes.
    assert {pattern: sum(bool(re.search(pattern, line)) for line in lines) for pattern in patterns} == dict.fromkeys(
        patterns, 1
    )


@pytest.mark.parametrize(("page", "query"), in_pages("sql"))
def test_sql_blocks_find_something_in_a_manifest(page: str, query: str, folder: Path) -> None:
    (folder / "async-maps.sqlite").unlink()
    np.save("maps/val/flat.npy", np.full((8, 8), 0.2))
    np.save("maps/val/invalid.npy", np.full((8, 8), np.nan))
    am.run("maps", "overlays", settings=am.Settings(workers=0), manifest="async-maps.sqlite")
    with closing(sqlite3.connect("async-maps.sqlite")) as database:
        rows = database.execute(query).fetchall()
    if into := re.search(r"INTO '(.*)'", query):
        assert am.export_manifest(into[1], "copy.csv", rows="all") == 7
    else:
        assert rows


@pytest.mark.parametrize(("page", "text"), in_pages("json", "toml", "yaml"))
def test_data_blocks_parse(page: str, text: str) -> None:
    language = next(language for language, found in code(page) if found == text)
    if language == "json":
        json.loads(text)
    elif language == "yaml":
        assert all(yaml.safe_load_all(text))
    else:
        assert am.Settings(**tomllib.loads(text)) != am.Settings()


def test_console_blocks_are_listed_here() -> None:
    found = {
        page: {command.words[0] for block in blocks(page, "console") for command in commands(block)} - {"async-maps"}
        for page in READMES
        if blocks(page, "console")
    }
    assert found == OUTSIDE


@pytest.mark.parametrize(("page", "text"), in_pages("console"))
def test_console_blocks_parse(page: str, text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    for command in commands(text):
        for arguments in ours_within(command.words):
            check_command(arguments)


@pytest.mark.parametrize("page", PAGES)
def test_every_variable_of_ours_exists(page: str) -> None:
    assert unknown_variables(read(page)) == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in links(page):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        to = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert to.exists(), target
        if anchor:
            assert anchor in anchors(to.relative_to(ROOT).as_posix()), target


def test_every_path_that_contributors_are_led_to_is_there() -> None:
    paths = re.findall(r"`((?:async_maps|tests|bench|\.ci)/[\w./]*)`", read(".github/CONTRIBUTING.md"))
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
    # A page of ours names tests by their place below tests/.
    tests = re.findall(r"`((?:\w+/)*test_\w+\.py)`", read("tests/README.md"))
    assert len(tests) > 10
    assert [path for path in tests if not (ROOT / "tests" / path).exists()] == []


def test_the_map_of_the_code_has_every_module_and_no_other() -> None:
    text = read("async_maps/README.md").partition("## Map of the code")[2]
    named = set(re.findall(r"`([\w/]+(?:/|\.\w+))`", text))
    assert [path for path in named if not ((ROOT / "async_maps" / path).exists() or (ROOT / path).exists())] == []
    code = {f"{path.parent.name}/" for path in (ROOT / "async_maps").glob("*/__init__.py")}
    code |= {path.name for path in (ROOT / "async_maps").glob("*.py")}
    assert code - named == {"__init__.py", "__main__.py"}
