"""Clients of the AWS SDK, without a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from botocore.config import Config
from botocore.exceptions import MissingServiceIdError
from botocore.loaders import Loader

from async_maps.filesystems.sessions import AsyncSession, blocking_client

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

pytestmark = pytest.mark.fast


async def test_clients_load_no_list_of_services(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Loader, type_name: str) -> Any:
        raise AssertionError(type_name)

    monkeypatch.setattr(Loader, "list_available_services", refuse)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    blocking = blocking_client(Config())
    assert blocking.get_paginator("list_objects_v2").result_keys
    async with AsyncSession().client({}) as client:
        assert client.meta.endpoint_url == blocking.meta.endpoint_url == "https://s3.eu-west-1.amazonaws.com"


def test_a_folder_of_the_aws_configuration_can_replace_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    (tmp_path / "s3" / "2099-01-01").mkdir(parents=True)
    (tmp_path / "s3" / "2099-01-01" / "service-2.json").write_text("{}")
    with pytest.raises(MissingServiceIdError):
        blocking_client(Config())
