"""Signed URLs of Google Cloud Storage, by which anyone can read an object."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode, urlsplit

from async_maps.filesystems.addresses import quote_key

if TYPE_CHECKING:
    from async_maps.filesystems.services.google import UrlSigner
    from async_maps.filesystems.services.signed_urls import Life

_ENDPOINT = "https://storage.googleapis.com"


def google_url(bucket: str, key: str, life: Life, signer: UrlSigner) -> str:
    """Return a signed URL of version 4 (Cloud Storage documentation, "V4 signing process with your own program")."""
    moment = life.begin.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{moment[:8]}/auto/storage/goog4_request"
    path = f"/{bucket}/{quote_key(key)}"
    query = urlencode(
        {
            "X-Goog-Algorithm": "GOOG4-RSA-SHA256",
            "X-Goog-Credential": f"{signer.email}/{scope}",
            "X-Goog-Date": moment,
            "X-Goog-Expires": str(life.seconds),
            "X-Goog-SignedHeaders": "host",
        },
        quote_via=quote,
        safe="",
    )
    host = urlsplit(_ENDPOINT).netloc
    request = f"GET\n{path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
    text = f"GOOG4-RSA-SHA256\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    return f"{_ENDPOINT}{path}?{query}&X-Goog-Signature={signer.sign(text.encode()).hex()}"
