"""The page in a notebook's frame and on a disk, in a real Chromium."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from async_maps.viewer.server import Viewer
from tests.support.viewing import make_run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.browsing import Tab

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra test-browser)")
expect = sync_api.expect


def test_a_frame_in_a_notebook_shows_maps_without_a_server(tab: Tab, tmp_path: Path) -> None:
    with Viewer(make_run(tmp_path, 4)) as viewer:
        text = viewer._repr_html_()
    (tmp_path / "notebook.html").write_text(f"<!doctype html><p>a notebook</p>{text}")
    tab.page.goto((tmp_path / "notebook.html").as_uri())
    frame = tab.page.frame_locator("iframe")
    expect(frame.locator(".tile .name")).to_have_text([f"val/{i:03}" for i in (3, 2, 1, 0)][::-1])
    frame.locator(".tile").first.click()
    expect(frame.locator(".one aside")).to_contain_text("CRC-32")
    frame.get_by_label("colormap").select_option("magma")
    frame.get_by_role("button", name="back to all maps").click()
    expect(frame.locator(".tile")).to_have_count(4)
    assert tab.serious(tab.page.frames[1]) == []
    # Nothing is asked, and nothing of the frame reaches the notebook.
    assert {address.partition(":")[0] for address in tab.addresses} <= {"file", "data", "about"}


def test_a_link_elsewhere_leads_to_the_page(tab: Tab, tmp_path: Path) -> None:
    with Viewer(make_run(tmp_path, 2)) as viewer:
        # As the file that a browser is opened with, or a link in a notebook.
        refresh = f'<meta http-equiv="refresh" content="0; url={viewer.url}">'
        for name, text in (("file", refresh), ("link", f'<a href="{viewer.url}#/?sort=-mean">look</a>')):
            (tmp_path / f"{name}.html").write_text(f"<!doctype html>{text}")
            tab.page.context.clear_cookies()
            tab.page.goto((tmp_path / f"{name}.html").as_uri())
            if name == "link":
                tab.page.get_by_text("look").click()
            expect(tab.page.locator(".tile:visible")).to_have_count(2)
            tab.settle()
            assert "token" not in tab.page.url
        # Nothing is asked when the server has ended.
        tab.page.goto("about:blank")


def test_a_page_on_a_disk_needs_no_network(tab: Tab, tmp_path: Path) -> None:
    with Viewer(make_run(tmp_path, 4)) as viewer:
        viewer.save(tmp_path / "page")
    tab.open(tmp_path / "page" / "index.html", "#/?sort=-mean")
    assert len(tab.names()) == 4
    tab.page.reload()
    tab.settle()
    tab.page.locator(".tile").first.click()
    tab.settle()
    tab.page.get_by_role("link", name="run").click()
    expect(tab.page.locator(".number.state")).to_contain_text("complete")
    assert {address.partition(":")[0] for address in tab.addresses} <= {"file", "about"}
