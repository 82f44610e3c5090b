"""Put, read and delete objects in a bucket without the package."""

from __future__ import annotations

import asyncio
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import aioboto3
import botocore.session

from async_maps.filesystems.addresses import parse_address

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def upload(bucket: str, objects: Mapping[str, bytes]) -> None:
    """Put objects, given as bytes by key."""

    async def put_all() -> None:
        async with aioboto3.Session().client("s3") as client:
            turn = asyncio.Semaphore(32)

            async def put(key: str, data: bytes) -> None:
                async with turn:
                    await client.put_object(Bucket=bucket, Key=key, Body=data)

            await asyncio.gather(*(put(key, data) for key, data in objects.items()))

    asyncio.run(put_all())


def delete(bucket: str, key: str) -> None:
    """Delete an object."""

    async def delete_one() -> None:
        async with aioboto3.Session().client("s3") as client:
            await client.delete_object(Bucket=bucket, Key=key)

    asyncio.run(delete_one())


async def keys(bucket: str) -> set[str]:
    """Return the keys in a bucket."""
    async with aioboto3.Session().client("s3") as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return {entry["Key"] async for page in pages for entry in page.get("Contents", [])}


async def objects(bucket: str) -> dict[str, tuple[bytes, Any]]:
    """Return the bytes and the time of the last change of each object, by key."""
    found = {}
    async with aioboto3.Session().client("s3") as client:
        async for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for entry in page.get("Contents", []):
                answer = await client.get_object(Bucket=bucket, Key=entry["Key"])
                found[entry["Key"]] = (await answer["Body"].read(), entry["LastModified"])
    return found


async def fetch(locators: list[str]) -> list[bytes]:
    """Return the bytes of the objects at these locators."""
    async with aioboto3.Session().client("s3") as client:
        found = []
        for locator in locators:
            address = parse_address(locator)
            answer = await client.get_object(Bucket=address.bucket, Key=address.key)
            found.append(await answer["Body"].read())
        return found


@contextmanager
def s3_client() -> Iterator[Any]:
    """Open a synchronous client and close it at the end."""
    with closing(botocore.session.Session().create_client("s3")) as client:
        yield client
