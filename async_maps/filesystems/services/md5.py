"""MD5s as services write them: in base 64. Tags of objects are MD5s in hexadecimal digits, as the ETags of S3."""

from __future__ import annotations

import base64
import hashlib
from binascii import Error


def base64_md5(data: bytes) -> str:
    """Return the MD5 in base 64."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def hex_md5(data: bytes) -> str:
    """Return the MD5 in hexadecimal digits."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def hex_of(md5: str) -> str:
    """Return an MD5 in base 64 in hexadecimal digits; empty if it is none."""
    try:
        digest = base64.b64decode(md5, validate=True)
    except (Error, ValueError):
        return ""
    return digest.hex() if len(digest) == 16 else ""
