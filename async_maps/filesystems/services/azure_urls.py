"""Shared access signatures of Azure, by which anyone can read a blob."""

from __future__ import annotations

import base64
import time
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlencode

from urllib3.exceptions import HTTPError
from urllib3.util import Timeout

from async_maps.errors import StoreError
from async_maps.filesystems.addresses import quote_key
from async_maps.filesystems.blame import judge_answer
from async_maps.filesystems.services.azure import VERSION, BlobStorage, date
from async_maps.filesystems.services.azure_keys import sign
from async_maps.filesystems.services.proxies import Http
from async_maps.filesystems.services.service import Answer
from async_maps.filesystems.services.xml import parse_xml

if TYPE_CHECKING:
    from async_maps.filesystems.services.azure_account import Account
    from async_maps.filesystems.services.signed_urls import Life

_TIMEOUT = Timeout(connect=5.0, read=10.0)
_FIELDS = {
    "skoid": "SignedOid", "sktid": "SignedTid", "skt": "SignedStart", "ske": "SignedExpiry", "sks": "SignedService",
    "skv": "SignedVersion",
}  # fmt: skip
"""The parameters of a URL that say which key has signed it, and their names in the answer with the key."""


class SigningKey(NamedTuple):
    """A key that signs: that of an account, or one that was delegated to a user, which ``fields`` describes."""

    value: bytes
    fields: dict[str, str]


def azure_url(account: Account, container: str, key: str, life: Life, signing_key: SigningKey) -> str:
    """Return the URL of a blob with a signature (Azure, "Create a service SAS" and "Create a user delegation SAS")."""
    begin, end = life.texts()
    protocol = "https" if account.url.startswith("https:") else "https,http"
    resource = f"/blob/{account.name}/{container}/{key}"
    # The empty lines are what this URL does not restrict or replace.
    of_key = [*signing_key.fields.values(), "", "", ""] if signing_key.fields else [""]
    lines = ["r", begin, end, resource, *of_key, "", protocol, VERSION, "b", "", "", "", "", "", "", ""]
    query = urlencode(
        {
            "sv": VERSION, "st": begin, "se": end, "sr": "b", "sp": "r", "spr": protocol, **signing_key.fields,
            "sig": sign(signing_key.value, "\n".join(lines)),
        },
        quote_via=quote,
        safe="",
    )  # fmt: skip
    return f"{account.url}/{container}/{quote_key(key)}?{query}"


def delegated_key(account: Account, token: str, life: Life) -> SigningKey:
    """Ask the service for a key that signs for the user of a token; blocks.

    Raises:
        StoreError: the service refuses, or does not answer, or its answer is no key.
    """
    begin, end = life.texts()
    url = f"{account.url}/?restype=service&comp=userdelegationkey"
    body = f"<KeyInfo><Start>{begin}</Start><Expiry>{end}</Expiry></KeyInfo>"
    headers = {"Authorization": f"Bearer {token}", "x-ms-version": VERSION, "x-ms-date": date(time.time())}
    try:
        with Http(timeout=_TIMEOUT, retries=2) as http:
            got = http.request("POST", url, body=body, headers={**headers, "Content-Type": "application/xml"})
    except HTTPError as error:
        raise StoreError(f"{account.url}: no answer to the request for a key that signs URLs", may_pass=True) from error
    answer = Answer(got.status, got.headers, got.data)
    if not answer.is_success:
        verdict = judge_answer(answer.status, *BlobStorage(account).refusal(answer))
        raise StoreError(f"{account.url}: the request for a key that signs URLs is {verdict.reason}")
    try:
        found = parse_xml(answer.body)
        fields = {parameter: found.text_of(name) for parameter, name in _FIELDS.items()}
        value = base64.b64decode(found.text_of("Value"))
    except (ValueError, LookupError):
        value, fields = b"", {}
    if not (value and all(fields.values())):
        # A sign-in page before the service can answer each request with 200.
        raise StoreError(f"{account.url}: the answer to the request for a key that signs URLs cannot be understood")
    return SigningKey(value, fields)
