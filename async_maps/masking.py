"""Masks secrets in texts: the one place that knows what a secret is. Everything printed, logged or kept passes it.

Imported by :mod:`async_maps.errors`, it also masks what the package logs.
"""

from __future__ import annotations

import json
import logging
import os
import re
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

MASK = "***"
# pathlib.Path removes one slash.
_USERINFO = re.compile(r"(://|https?:/)[^\s/?#\"'<>]+@")
_QUERY = re.compile(
    r"((?:X-Amz-(?:Signature|Credential|Security-Token)|Signature|(?:\b|%26|%3F)sig|AWSAccessKeyId|AccountKey|access_token|token"
    r"|password|secret)"
    # Not the backslash before a quotation mark: the text may be JSON, which must stay JSON.
    r"\s*(?:=|%3D)\s*)(?:[^&\s\"'<>#,;\\]|\\[^\s\"'])+",
    re.IGNORECASE,
)
_SECRETS = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_CLIENT_SECRET",
    "AZURE_CLIENT_CERTIFICATE_PASSWORD",
)
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_URLS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_STS", *_PROXIES, *map(str.lower, _PROXIES))
_SHORTEST = 6
"""Shorter texts also occur in words; as passwords in a URL they are masked by their place."""


def mask(text: str) -> str:
    """Return a text without secrets: passwords in URLs, signed queries, and the secrets in the environment."""
    if ":/" in text:
        text = _USERINFO.sub(rf"\1{MASK}@", text)
    if "=" in text or "%3d" in text.lower():
        text = _QUERY.sub(rf"\1{MASK}", text)
    for secret in _secrets(tuple(map(os.environ.get, _SECRETS)), tuple(map(os.environ.get, _URLS))):
        text = text.replace(secret, MASK)
    return text


def masked_json(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON whose texts have no secrets. Its keys, which are our own, stay as they are."""
    # Before the conversion, which escapes quotation marks, backslashes and letters of secrets.
    return json.dumps(_masked(value), indent=indent, default=lambda other: mask(str(other)))


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {key: _masked(item) for key, item in value.items()}
    return [_masked(item) for item in value] if isinstance(value, list | tuple) else value


@lru_cache(4)
def _secrets(values: tuple[str | None, ...], urls: tuple[str | None, ...]) -> list[str]:
    """Return the secrets in the values of the variables; the longest first, because one may contain another."""
    found = [value for value in values if value]
    for url in urls:
        with suppress(ValueError):
            password = urlsplit(url or "").password or ""
            found += [password, unquote(password)]
    return sorted({secret for secret in found if len(secret) >= _SHORTEST}, key=len, reverse=True)


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Replace the text of a record by the masked one."""
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            return True  # logging reports it
        masked = mask(text)
        if masked != text:
            record.msg, record.args = masked, ()
        return True


for _name in ("async_maps", "async_maps.cli"):
    logging.getLogger(_name).addFilter(_Filter())
