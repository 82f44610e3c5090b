"""Google Cloud Storage by its JSON API. No input or output."""

from __future__ import annotations

import base64
import json
import os
import re
from datetime import datetime
from secrets import token_hex
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from async_maps.errors import SettingsError, require_extra
from async_maps.filesystems.addresses import Address
from async_maps.filesystems.answers import Object
from async_maps.filesystems.endpoints import Identity, normalize_endpoint
from async_maps.filesystems.listings import Page
from async_maps.filesystems.services.google import GoogleCredentials
from async_maps.filesystems.services.md5 import base64_md5, hex_of
from async_maps.filesystems.services.proxies import is_server
from async_maps.filesystems.services.service import Request
from async_maps.filesystems.services.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from async_maps.filesystems.services.service import Answer, ObjectHeaders

_ENDPOINT = "https://storage.googleapis.com"
_MOST = 1000
"""The most objects in a page of a listing."""
_PROPERTIES = "name,size,md5Hash,generation,updated"
_MISMATCH = re.compile("(?:md5|crc32c).*match", re.IGNORECASE | re.DOTALL)
_JSON = {"Accept-Encoding": "identity"}
# Without it, objects stored with Content-Encoding gzip are unpacked by the server, which then ignores ranges.
_AS_STORED = {"Accept-Encoding": "gzip"}


class CloudStorage:
    """Google Cloud Storage, or an emulator of it.

    Args:
        endpoint: the URL of the server.
        tokens: the tokens; None for an emulator, which asks for none.
        crc32c: computes the CRC32C of bytes.
    """

    condition, bucket_word = "ifGenerationMatch", "bucket"
    advice_if_denied = "allow the role Storage Object User (roles/storage.objectUser) on the bucket"
    advice = "check the network"

    def __init__(self, endpoint: str, tokens: Tokens | None, crc32c: Callable[[bytes], int]) -> None:
        self.endpoint = endpoint
        self.is_original = endpoint == _ENDPOINT
        self.tokens = tokens
        self.proof_words = "none: an emulator asks for none" if tokens is None else "a token of Google Cloud"
        self._crc32c = crc32c
        self._boundary = token_hex(16)

    @classmethod
    def from_environment(cls) -> CloudStorage:
        """Open the service; ``STORAGE_EMULATOR_HOST`` names an emulator.

        Raises:
            SettingsError: that is no address.
            MissingExtraError: the extra ``gcs`` is not installed.
        """
        with require_extra("gs://", "gcs"):
            import google.auth  # noqa: F401  # used with the first request
            from google_crc32c import value
        emulator = os.environ.get("STORAGE_EMULATOR_HOST", "").strip()
        if not emulator:
            return cls(_ENDPOINT, Tokens(GoogleCredentials().token), value)
        endpoint = normalize_endpoint(emulator if "://" in emulator else f"http://{emulator}")
        if not (re.fullmatch(r"https?://[^/\s@]+", endpoint) and is_server(endpoint)):
            raise SettingsError(f"STORAGE_EMULATOR_HOST: expected http://host:port, found {emulator!r}")
        return cls(endpoint, None, value)

    def locator(self, bucket: str, key: str) -> str:
        """Return ``gs://bucket/key``."""
        return str(Address("gs", bucket, key))

    def identity(self, folder: str) -> str:
        """Return the folder, with the endpoint if it is an emulator's."""
        return str(Identity(folder, "" if self.is_original else self.endpoint))

    def put(self, bucket: str, key: str, data: bytes, headers: ObjectHeaders, *, create_only: bool) -> Request:
        """Return the request of an upload in two parts: the properties, with the checksums, and the bytes."""
        options = {"uploadType": "multipart", "name": key}
        if create_only:
            options["ifGenerationMatch"] = "0"
        checksums = {
            "md5Hash": base64_md5(data),
            "crc32c": base64.b64encode(self._crc32c(data).to_bytes(4, "big")).decode(),
        }
        properties: dict[str, Any] = {"name": key, "contentType": headers.content_type, **checksums}
        if headers.cache_control is not None:
            properties["cacheControl"] = headers.cache_control
        if headers.metadata:
            properties["metadata"] = dict(headers.metadata)
        mark = self._boundary
        body = b"".join([
            f"--{mark}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps(properties)}\r\n"
            f"--{mark}\r\nContent-Type: {headers.content_type}\r\n\r\n".encode(),
            data,
            f"\r\n--{mark}--\r\n".encode(),
        ])  # fmt: skip
        kind = {"Content-Type": f"multipart/related; boundary={mark}"}
        url = f"{self._url('upload/storage', bucket)}/o?{_query(options)}"
        return Request("POST", url, _JSON | kind, body, {**checksums, "size": str(len(data))})

    def exists(self, answer: Answer) -> bool:
        """Whether the generation of the object was not 0; policies of an organization have the same status."""
        return answer.status == 412 and self.refusal(answer)[0] == "conditionNotMet"

    def proof(self, answer: Answer, request: Request) -> str | None:
        """Return the MD5 if both checksums in the answer are those of the bytes."""
        try:
            stored = json.loads(answer.body)
            # Without the permission to decrypt, an object with a key of the customer has no MD5 in answers.
            md5 = stored.get("md5Hash", "")
        except (ValueError, AttributeError):
            return None
        is_proved = all(stored.get(name) == value for name, value in request.expected.items() if name != "md5Hash")
        return hex_of(md5) if is_proved and md5 in {"", request.expected["md5Hash"]} else None

    def get(self, bucket: str, key: str, start: int, length: int) -> Request:
        """Return the request for a part of an object."""
        return Request("GET", f"{self._object(bucket, key)}?alt=media", _AS_STORED | _range(start, length))

    def tag(self, headers: Mapping[str, str]) -> str:
        """Return the MD5 in ``x-goog-hash``, else the generation."""
        for part in headers.get("x-goog-hash", "").split(","):
            name, _, value = part.strip().partition("=")
            if name == "md5" and (md5 := hex_of(value)):
                return md5
        return headers.get("x-goog-generation", "")

    def find(self, bucket: str, key: str) -> Request:
        """Return the request for the properties of an object."""
        return Request("GET", f"{self._object(bucket, key)}?fields={_PROPERTIES}", _JSON)

    def found(self, key: str, answer: Answer) -> Object:
        """Return the object with these properties."""
        return _object(json.loads(answer.body))._replace(key=key)

    def listing(self, bucket: str, prefix: str, after: str = "", *, by_folder: bool = False, most: int = 0) -> Request:
        """Return the request for a page of a listing."""
        options = {
            "prefix": prefix,
            "pageToken": after,
            "delimiter": "/" if by_folder else "",
            "maxResults": str(most or _MOST),
            "fields": f"kind,items({_PROPERTIES}),prefixes,nextPageToken",
        }
        query = _query({name: value for name, value in options.items() if value})
        return Request("GET", f"{self._url('storage', bucket)}/o?{query}", _JSON)

    def page(self, answer: Answer) -> tuple[Page, str]:
        """Return the page, and its ``nextPageToken``."""
        listed = json.loads(answer.body)
        if listed["kind"] != "storage#objects":
            raise ValueError("it is no listing")
        objects = [_object(item) for item in listed.get("items", [])]
        return Page(objects, listed.get("prefixes", [])), listed.get("nextPageToken", "")

    def delete(self, bucket: str, key: str) -> Request:
        """Return the request to delete an object."""
        return Request("DELETE", self._object(bucket, key), _JSON)

    def refusal(self, answer: Answer) -> tuple[str, str]:
        """Return the first reason in the answer, in words of :mod:`~async_maps.filesystems.codes`, and its message."""
        text = answer.body.decode("utf-8", "replace")
        try:
            error = json.loads(text)["error"]
            message = str(error.get("message", ""))
            reason = str(error["errors"][0]["reason"]) if error.get("errors") else ""
        except (ValueError, LookupError, TypeError, AttributeError):
            # The page of a proxy says nothing in one line.
            reason, message = "", "" if text.lstrip().startswith("<") else text
        if message.startswith("No such object"):
            reason = "noSuchObject"
        elif answer.status in {400, 409} and _MISMATCH.search(message):
            reason = "hashMismatch"
        return reason, message

    def cors_command(self, bucket: str, origins: Sequence[str]) -> str:
        """Return the command that lets pages of these origins read the objects; it replaces other rules."""
        rules = json.dumps([{"origin": list(origins), "method": ["GET"], "maxAgeSeconds": 3600}])
        return f"echo '{rules}' > cors.json && gcloud storage buckets update gs://{bucket} --cors-file=cors.json"

    def authorize(self, request: Request, token: str) -> Request:
        """Return the request with the token, if there is one."""
        if not token:
            return request
        return request._replace(headers={**request.headers, "Authorization": f"Bearer {token}"})

    def renews(self, answer: Answer, _sent: Request, token: str) -> bool:
        """Whether the request may be accepted with another token than this one."""
        return answer.status == 401 and self.tokens is not None and self.tokens.refuse(token)

    def _url(self, service: str, bucket: str) -> str:
        return f"{self.endpoint}/{service}/v1/b/{quote(bucket, safe='')}"

    def _object(self, bucket: str, key: str) -> str:
        return f"{self._url('storage', bucket)}/o/{quote(key, safe='', errors='surrogatepass')}"


def _object(properties: Mapping[str, Any]) -> Object:
    changed = properties.get("updated")
    return Object(
        properties["name"],
        int(properties["size"]),
        hex_of(properties.get("md5Hash") or "") or str(properties.get("generation", "")),
        None if changed is None else datetime.fromisoformat(changed).timestamp(),
    )


def _query(options: Mapping[str, str]) -> str:
    return urlencode(options, quote_via=quote, safe="", errors="surrogatepass")


def _range(start: int, length: int) -> dict[str, str]:
    return {"Range": f"bytes={start}-{start + length - 1}"}
