"""Azure Blob Storage by its REST API. No input or output."""

from __future__ import annotations

from email.utils import formatdate
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlencode

from async_maps.errors import require_extra
from async_maps.filesystems.addresses import Address
from async_maps.filesystems.answers import Object
from async_maps.filesystems.blame import answer_details
from async_maps.filesystems.clock import Clock, time_of
from async_maps.filesystems.listings import Page
from async_maps.filesystems.services.azure_account import Account
from async_maps.filesystems.services.azure_keys import authorization
from async_maps.filesystems.services.entra import EntraCredentials
from async_maps.filesystems.services.md5 import base64_md5, hex_of
from async_maps.filesystems.services.service import Request
from async_maps.filesystems.services.tokens import Tokens
from async_maps.filesystems.services.xml import Element, parse_xml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from async_maps.filesystems.services.service import Answer, ObjectHeaders

VERSION = "2021-12-02"
"""The version of the REST API. It percent-encodes names in listings that XML cannot have."""
_MOST = 5000
"""The most objects in a page of a listing."""


class BlobStorage:
    """The blobs of an account.

    Args:
        account: the account.
    """

    condition, bucket_word = "If-None-Match", "container"
    advice = "check AZURE_STORAGE_ACCOUNT, and the network"

    def __init__(self, account: Account) -> None:
        self._account = account
        self._clock = Clock()
        self.endpoint = account.url
        self.is_original = not account.is_emulator
        has_proof = account.key or account.sas
        self.tokens = None if has_proof else Tokens(EntraCredentials().token)
        words = "the key of the account" if account.key else "a shared access signature"
        self.advice_if_denied = "allow the role Storage Blob Data Contributor on the container"
        if has_proof:
            self.advice_if_denied = f"check {words}, and what it allows"
        self.proof_words = words if has_proof else "a token of Microsoft Entra ID"

    @classmethod
    def from_environment(cls, url: str = "") -> BlobStorage:
        """Open the account at a URL, else that of the environment.

        Raises:
            SettingsError: there is no account.
            MissingExtraError: there is neither a key nor the extra ``azure``.
        """
        opened = cls(Account.from_environment(url))
        if opened.tokens is not None:
            with require_extra("az:// without AZURE_STORAGE_KEY", "azure"):
                import azure.identity  # noqa: F401  # used with the first request
        return opened

    def locator(self, bucket: str, key: str) -> str:
        """Return the URL of a blob."""
        return str(Address("az", bucket, key, self._account.url))

    def identity(self, folder: str) -> str:
        """Return the folder, whose URL names the account."""
        return folder

    def put(self, bucket: str, key: str, data: bytes, headers: ObjectHeaders, *, create_only: bool) -> Request:
        """Return the request to store a blob. The service compares the MD5, and keeps it."""
        checksum = {"Content-MD5": base64_md5(data)}
        own = {
            "Content-Type": headers.content_type,
            **checksum,
            "x-ms-blob-type": "BlockBlob",
            **({} if headers.cache_control is None else {"x-ms-blob-cache-control": headers.cache_control}),
            **{f"x-ms-meta-{name}": value for name, value in headers.metadata.items()},
            **({"If-None-Match": "*"} if create_only else {}),
        }
        return Request("PUT", self.locator(bucket, key), own, data, checksum)

    def exists(self, answer: Answer) -> bool:
        """Whether there is a blob with that name."""
        return self.refusal(answer)[0] == "BlobAlreadyExists"

    def proof(self, answer: Answer, request: Request) -> str | None:
        """Return the MD5 if the answer has it."""
        md5 = request.expected["Content-MD5"]
        return hex_of(md5) if answer.headers.get("Content-MD5") == md5 else None

    def get(self, bucket: str, key: str, start: int, length: int) -> Request:
        """Return the request for a part of a blob."""
        return Request("GET", self.locator(bucket, key), {"x-ms-range": f"bytes={start}-{start + length - 1}"})

    def tag(self, headers: Mapping[str, str]) -> str:
        """Return the MD5 of the whole blob, which blobs in several blocks lack; else the ETag."""
        # The header Content-MD5 is that of the part.
        return hex_of(headers.get("x-ms-blob-content-md5", "")) or headers.get("ETag", "").strip('"')

    def find(self, bucket: str, key: str) -> Request:
        """Return the request for the properties of a blob."""
        return Request("HEAD", self.locator(bucket, key), {})

    def found(self, key: str, answer: Answer) -> Object:
        """Return the blob with these properties."""
        headers = answer.headers
        # The page of a proxy has no ETag.
        tag = hex_of(headers.get("Content-MD5", "")) or headers["ETag"].strip('"')
        return Object(key, int(headers["Content-Length"]), tag, time_of(headers.get("Last-Modified", "")))

    def listing(self, bucket: str, prefix: str, after: str = "", *, by_folder: bool = False, most: int = 0) -> Request:
        """Return the request for a page of a listing."""
        options = {
            "restype": "container",
            "comp": "list",
            "prefix": prefix,
            "marker": after,
            "delimiter": "/" if by_folder else "",
            "maxresults": str(most or _MOST),
        }
        query = urlencode({name: value for name, value in options.items() if value}, quote_via=quote, safe="")
        return Request("GET", f"{self._account.url}/{bucket}?{query}", {})

    def page(self, answer: Answer) -> tuple[Page, str]:
        """Return the page, and its ``NextMarker``."""
        root = parse_xml(answer.body)
        blobs = root.child("Blobs")
        # An account with a hierarchical namespace lists folders, too.
        objects = [
            _blob(each)
            for each in blobs.children("Blob")
            if each.child("Properties").text_of("ResourceType") != "directory"
        ]
        folders = [_name(each) for each in blobs.children("BlobPrefix")]
        return Page(objects, folders), root.text_of("NextMarker")

    def delete(self, bucket: str, key: str) -> Request:
        """Return the request to delete a blob."""
        return Request("DELETE", self.locator(bucket, key), {})

    def refusal(self, answer: Answer) -> tuple[str, str]:
        """Return the code and the message in the answer."""
        code, message = answer_details(answer.body)
        code = answer.headers.get("x-ms-error-code", code)
        if code == "InvalidOperation" and "contentMD5" in message:
            code = "Md5Mismatch"  # in the words of Azurite
        # Other lines have the number of the request and the time.
        return code, message.partition("\n")[0]

    def cors_command(self, bucket: str, origins: Sequence[str]) -> str:  # of the protocol
        """Return the command that lets pages of these origins read the blobs of all containers."""
        shown = " ".join(origins)
        return f"az storage cors add --account-name {self._account.name} --services b --methods GET --origins {shown}"

    def authorize(self, request: Request, token: str) -> Request:
        """Return the request with the time and the version, and a token or a signature."""
        account, url = self._account, request.url
        headers = {**request.headers, "x-ms-version": VERSION, "x-ms-date": date(self._clock.time())}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        elif account.key:
            # The client adds the length.
            signed = {**headers, "Content-Length": str(len(request.body))}
            headers["Authorization"] = authorization(account, request.method, url, signed)
        elif account.sas:
            url = f"{url}{'&' if '?' in url else '?'}{account.sas}"
        return request._replace(url=url, headers=headers)

    def renews(self, answer: Answer, sent: Request, token: str) -> bool:
        """Whether the request may be accepted with another token than this one, or with the store's time."""
        if self.tokens is not None:
            return answer.status == 401 and self.tokens.refuse(token)
        # A shared access signature does not sign the time.
        signed_at = time_of(sent.headers["x-ms-date"]) if self._account.key else None
        return (
            answer.status == 403
            and signed_at is not None
            and self._clock.correct(answer.headers.get("Date", ""), signed_at)
        )


def _blob(found: Element) -> Object:
    properties = found.child("Properties")
    tag = hex_of(properties.text_of("Content-MD5")) or properties.text_of("Etag").strip('"')
    return Object(
        _name(found), int(properties.text_of("Content-Length")), tag, time_of(properties.text_of("Last-Modified"))
    )


def _name(found: Element) -> str:
    name = found.child("Name")
    return unquote(name.text) if name.attributes.get("Encoded") == "true" else name.text


def date(seconds: float) -> str:
    """Return a time as in the headers of HTTP."""
    return formatdate(int(seconds), usegmt=True)
