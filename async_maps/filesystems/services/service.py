"""The protocol of an object service: it makes requests and understands answers, without input or output."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from async_maps.filesystems.answers import Object
    from async_maps.filesystems.listings import Page
    from async_maps.filesystems.services.tokens import Tokens


NOT_UNDERSTOOD = (ValueError, LookupError, TypeError, AttributeError)
"""The errors of a service that understands an answer which is none of its server."""


class Request(NamedTuple):
    """A request.

    Attributes:
        method: the method of HTTP.
        url: the URL, percent-encoded.
        headers: the headers.
        body: the body.
        expected: of a PUT, what its answer must say of the object: checksums, as the service writes them.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes = b""
    expected: Mapping[str, str] = {}


class Answer(NamedTuple):
    """An answer. Its headers are found by names in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def is_success(self) -> bool:
        """Whether the request was accepted."""
        return 200 <= self.status < 300


class ObjectHeaders(NamedTuple):
    """What the objects of a store have in common."""

    content_type: str
    cache_control: str | None
    metadata: Mapping[str, str]


class Service(Protocol):
    """An object service.

    Attributes:
        endpoint: the URL of the server.
        is_original: whether it is the vendor's own server, which does what the vendor's documentation says; an emulator
            may not.
        tokens: the tokens of the requests; None if they are signed otherwise, or not at all.
        condition: what the service calls the condition of a create-only PUT.
        bucket_word: what the service calls a bucket.
        advice_if_denied: what to allow, or to check, for all commands.
        advice: what to check if the name of the server is not known.
        proof_words: what proves that requests are allowed, in words.
    """

    endpoint: str
    is_original: bool
    tokens: Tokens | None
    condition: str
    bucket_word: str
    advice_if_denied: str
    advice: str
    proof_words: str

    def locator(self, bucket: str, key: str) -> str:
        """Return the URL of an object; with an empty key, the start of all."""

    def identity(self, folder: str) -> str:
        """Return the identity of a store with these locators, see :class:`~async_maps.stores.Store`."""

    def put(self, bucket: str, key: str, data: bytes, headers: ObjectHeaders, *, create_only: bool) -> Request:
        """Return the request to store an object, with checksums that the service compares."""

    def exists(self, answer: Answer) -> bool:
        """Whether a create-only PUT was refused because the object exists."""

    def proof(self, answer: Answer, request: Request) -> str | None:
        """Return the tag of a stored object, the MD5 of its bytes, if the answer to a PUT proves that they are stored.

        Returns:
            The tag; empty if the service has none; None without proof.
        """

    def get(self, bucket: str, key: str, start: int, length: int) -> Request:
        """Return the request for a part of an object."""

    def tag(self, headers: Mapping[str, str]) -> str:
        """Return the tag of the object in an answer to :meth:`get`: its MD5, else what changes with it, or empty."""

    def find(self, bucket: str, key: str) -> Request:
        """Return the request for the properties of an object."""

    def found(self, key: str, answer: Answer) -> Object:
        """Return the object in an answer to :meth:`find`."""

    def listing(self, bucket: str, prefix: str, after: str = "", *, by_folder: bool = False, most: int = 0) -> Request:
        """Return the request for a page of a listing.

        Args:
            bucket: the bucket.
            prefix: the start of the keys.
            after: what the page before said; empty for the first one.
            by_folder: whether to leave out what is below a folder.
            most: the maximum number of objects; 0 for the most that the service lists.
        """

    def page(self, answer: Answer) -> tuple[Page, str]:
        """Return the page in an answer to :meth:`listing`, and what the next request says; empty after the last page.

        Raises:
            ValueError, LookupError: it is no listing.
        """

    def delete(self, bucket: str, key: str) -> Request:
        """Return the request to delete an object."""

    def refusal(self, answer: Answer) -> tuple[str, str]:
        """Return the code and the message of a refused request; empty if they are not there."""

    def cors_command(self, bucket: str, origins: Sequence[str]) -> str:
        """Return the command that lets pages of these origins read the objects of a bucket."""

    def authorize(self, request: Request, token: str) -> Request:
        """Return a request with a token, or with a signature."""

    def renews(self, answer: Answer, sent: Request, token: str) -> bool:
        """Whether the request may be accepted with another token than this one, or with the signature of another time.

        A token may have been withdrawn before it expired; this machine's clock may be wrong.
        """
