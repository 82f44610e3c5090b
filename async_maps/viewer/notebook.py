"""The first maps of a manifest in a notebook: a page in a frame that needs no server. Blocks."""

from __future__ import annotations

import base64
import html
from contextlib import suppress
from typing import TYPE_CHECKING

from async_maps.errors import ObjectError
from async_maps.viewer.bundle import offline_script, page_files
from async_maps.viewer.export import body_of, chosen_rows, data_of, image_of, overlays_of, packed_plane, script_of

if TYPE_CHECKING:
    from async_maps.viewer.content import Content

MOST_MAPS = 50
"""The maps in a frame: about 50 KB each are kept in the notebook."""
_SIDE = 256
_HEIGHT = 620
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
    "form-action 'none'"
)


def frame(content: Content) -> str:
    """Return HTML with a sandboxed frame of up to 50 maps.

    It has no address of the server: notebooks are saved and sent to others, and with its token all could read objects.

    Raises:
        AsyncMapsError: the manifest cannot be read, or a store cannot be reached.
    """
    rows = chosen_rows(content, MOST_MAPS)
    planes = {}
    for row, of in overlays_of(rows):
        # The tile of one that cannot be read says that it is missing.
        with suppress(ObjectError):
            planes[f"{of}/{row['row']}"] = packed_plane(content, row, of, _SIDE)
    for row in rows:
        image = image_of(content, row["name"], _SIDE)
        row["image"] = image and f"data:{image[1]};base64,{base64.b64encode(image[0]).decode()}"
    page = page_files()
    icon = base64.b64encode(page["icon.svg"]).decode()
    style = page["app.css"].decode().replace("icon.svg", f"data:image/svg+xml;base64,{icon}")
    document = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="dark light">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>async-maps</title><style>{style}</style></head>{body_of(page['index.html'])}"
        f"<script>window.ASYNC_MAPS = {script_of(data_of(content, rows) | {'planes': planes})};</script>"
        f"<script>{offline_script()}</script>"
    )
    total = content.side.rows.counts().total
    shown = f"The first {len(rows):,} of {total:,} maps. " if total > len(rows) else ""
    return (
        f'<iframe title="async-maps" sandbox="allow-scripts allow-downloads" '
        f'style="width: 100%; height: {_HEIGHT}px; border: 0" '
        f'srcdoc="{html.escape(document)}"></iframe>'
        f"<div>{shown}Call <code>show()</code> to open the page of this viewer in a browser.</div>"
    )
