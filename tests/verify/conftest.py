"""The manifest of a test, and a record of uploads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from async_maps.verify import meanwhile

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def puts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that are uploaded from now on."""
    from async_maps.stores.files import FileStore
    from async_maps.stores.s3 import S3Store

    keys: list[str] = []
    for store in (S3Store, FileStore):

        async def put(self: Any, key: str, data: bytes, original: Any = store.put) -> Any:
            keys.append(key)
            return await original(self, key, data)

        monkeypatch.setattr(store, "put", put)
    return keys


@pytest.fixture(autouse=True)
def a_minute_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge the objects that a test has added, as a verification does a minute later."""
    monkeypatch.setattr(meanwhile, "_OTHERS_S", 0.0)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return tmp_path / "m.sqlite"
