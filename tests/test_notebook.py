"""A real notebook, where ``ipykernel``'s event loop runs in the calling thread."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

RUN = """
import asyncio
import numpy as np
import async_maps as am

assert asyncio.get_running_loop().is_running()
maps = [(f"{n}", np.full((8, 8), n, np.uint8)) for n in range(20)]
seen = []
report = am.run(maps, "out", manifest="m.sqlite", on_progress=seen.append)
print(report.uploaded, am.verify_locators("m.sqlite").is_clean, seen[-1].ended)
"""
COROUTINES = """
async def pairs():
    for pair in maps:
        yield pair

print((await am.arun(pairs(), am.MemoryStore())).uploaded, len([outcome async for outcome in am.astream(maps, "out")]))
try:
    am.run(pairs(), am.MemoryStore())
except am.SourceError as error:
    print("await am.arun(...)" in str(error))
"""
FOREVER = """
import pathlib

def endless():
    n = 0
    while True:
        yield f"{n}", np.full((8, 8), 7, np.uint8)
        n += 1
        if n == 5000:  # more than can be in flight
            pathlib.Path("running").touch()

am.run(endless(), am.MemoryStore(), manifest="endless.sqlite")
"""
VIEW = """
viewer = am.view(report, open_browser=False)
viewer
"""
AFTER = """
viewer.close()
import sqlite3
done = sqlite3.connect("endless.sqlite").execute("SELECT count(*) FROM maps").fetchone()[0]
print(done > 0, am.run(maps, "out", manifest="m2.sqlite").uploaded)
"""


def text_of(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell["outputs"] if output.get("name") == "stdout")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a_notebook_can_run_and_interrupt(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell(source) for source in (RUN, COROUTINES, VIEW, FOREVER, AFTER)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(notebook, timeout=110, resources={"metadata": {"path": str(tmp_path)}})

    async with client.async_setup_kernel():
        await client.async_execute_cell(cells[0], 0)
        assert text_of(cells[0]) == "20 True True\n"
        await client.async_execute_cell(cells[1], 1)
        assert text_of(cells[1]) == "20 20\nTrue\n"

        await client.async_execute_cell(cells[2], 2)
        (shown,) = cells[2]["outputs"]
        assert "<iframe title=" in shown["data"]["text/html"]

        async def interrupt_when_running() -> None:
            while not (tmp_path / "running").exists():  # noqa: ASYNC110  # a file of another process
                await asyncio.sleep(0.05)
            await client.km.interrupt_kernel()

        interrupting = asyncio.create_task(interrupt_when_running())
        with pytest.raises(nbclient.exceptions.CellExecutionError, match="KeyboardInterrupt"):
            await client.async_execute_cell(cells[3], 3)
        await interrupting
        await client.async_execute_cell(cells[4], 4)
        assert text_of(cells[4]) == "True 20\n"
