"""The bucket that is looked at, and the keys below its prefix that are used for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from async_maps.doctor.finding import Finding

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

    from async_maps.doctor.finding import Level, OnFinding
    from async_maps.settings import Settings


class Target(NamedTuple):
    """What every check of S3 needs.

    Attributes:
        client: open.
        bucket: the bucket's name.
        prefix: of all keys, without a slash at its end.
        mark: what the names of our objects start with; nobody else's do.
        settings: those of the run to come.
        on_finding: takes the findings.
    """

    client: S3Client
    bucket: str
    prefix: str
    mark: str
    settings: Settings
    on_finding: OnFinding

    @property
    def stem(self) -> str:
        """What the keys of our objects start with."""
        return f"{self.prefix}/{self.mark}" if self.prefix else self.mark

    @property
    def url(self) -> str:
        """The destination."""
        return f"s3://{self.bucket}/{self.prefix}"

    def say(self, check: str, level: Level, text: str, advice: str = "") -> None:
        """Report a finding."""
        self.on_finding(Finding(check, level, text, advice))
