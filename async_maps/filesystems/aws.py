"""Configuration and errors of the AWS SDK's clients, for sources and destinations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_maps.filesystems.blame import judge
from async_maps.filesystems.endpoints import is_aws

if TYPE_CHECKING:
    from typing import Any

    from botocore.exceptions import ClientError

    from async_maps.settings import S3Settings

_SDK_ATTEMPTS = 5
"""The SDK waits for up to 20 s between two attempts; more attempts would take minutes."""


def client_options(settings: S3Settings, connections: int, attempts: int | None = None) -> dict[str, Any]:
    """Return the configuration of a client; ``attempts`` defaults to the settings', at most :data:`_SDK_ATTEMPTS`."""
    return {
        "max_pool_connections": connections,
        "connect_timeout": settings.connect_timeout_s,
        "read_timeout": settings.read_timeout_s,
        "retries": {"mode": "standard", "total_max_attempts": attempts or min(settings.max_attempts, _SDK_ATTEMPTS)},
        # Several S3-compatible stores fail with trailing checksums; our PUTs send a checksum in a header.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "parameter_validation": False,
        "user_agent_extra": "async-maps",
    }


def pay_for_requests(client: Any, settings: S3Settings) -> None:
    """Let all requests of a client say who pays for them; without the header, buckets of Requester Pays refuse them."""
    if settings.request_payer is None:
        return
    header = {"x-amz-request-payer": settings.request_payer}
    client.meta.events.register("before-call.s3", lambda params, **_: params["headers"].update(header))


def url_options(client: Any) -> dict[str, Any] | None:
    """Return the ``s3`` configuration for presigned URLs with the host of the region; None if the client has it.

    By default botocore signs for AWS's global host. It redirects requests for new buckets to their region, where the
    signature is invalid, and does not serve opt-in regions.
    """
    s3: dict[str, Any] = client.meta.config.s3 or {}
    if not is_aws(client.meta.endpoint_url) or s3.get("addressing_style", "auto") != "auto":
        return None
    return {**s3, "addressing_style": "virtual"}


def refusal(error: ClientError) -> tuple[str, int, str]:
    """Return the code of an error, its HTTP status, and a sentence for messages."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code, error.response["ResponseMetadata"]["HTTPStatusCode"], judge(error).reason


def unreachable(error: Exception) -> str:
    """Return a sentence for the error of a request that got no answer."""
    return judge(error).reason
