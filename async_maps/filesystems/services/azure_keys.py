"""Signatures of requests with the key of a storage account (Azure Storage REST API, "Authorize with Shared Key")."""

from __future__ import annotations

import base64
import hmac
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from async_maps.filesystems.services.azure_account import Account

_SIGNED = (
    "content-encoding", "content-language", "content-length", "content-md5", "content-type", "date",
    "if-modified-since", "if-match", "if-none-match", "if-unmodified-since", "range",
)  # fmt: skip


def authorization(account: Account, method: str, url: str, headers: Mapping[str, str]) -> str:
    """Return the header Authorization of a request with these headers."""
    lower = {name.lower(): value for name, value in headers.items()}
    # The length of an empty body is left out, also as 0.
    lower["content-length"] = lower.get("content-length", "").lstrip("0")
    own = sorted((name for name in lower if name.startswith("x-ms-")), key=_rank)
    target = urlsplit(url)
    text = "\n".join([
        method,
        *(lower.get(name, "") for name in _SIGNED),
        *(f"{name}:{lower[name]}" for name in own),
        f"/{account.name}{target.path}",
        *(f"{name.lower()}:{value}" for name, value in sorted(parse_qsl(target.query, keep_blank_values=True))),
    ])  # fmt: skip
    return f"SharedKey {account.name}:{sign(account.key, text)}"


def _rank(name: str) -> str:
    """Return what the service sorts a header by: without hyphens, and with underscores before digits."""
    return name.replace("-", "").replace("_", " ")


def sign(key: bytes, text: str) -> str:
    """Return the HMAC with SHA-256 in base 64."""
    return base64.b64encode(hmac.digest(key, text.encode(), "sha256")).decode()
