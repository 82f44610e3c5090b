"""A temporary database: atomic transactions and one clear error message."""

from __future__ import annotations

import sqlite3
from threading import Thread

import pytest

from async_maps.errors import ManifestError, SourceError
from async_maps.filesystems.spill import Spill

pytestmark = [pytest.mark.fast]

SCHEMA = "CREATE TABLE names (name TEXT PRIMARY KEY) WITHOUT ROWID"


def insert(spill: Spill, *names: str) -> None:
    with spill.transaction() as database:
        database.executemany("INSERT INTO names VALUES (?)", [(name,) for name in names])


def test_rows_returns_the_written_rows() -> None:
    with Spill("the names", SCHEMA, SourceError) as spill:
        insert(spill, "b", "a")
        assert spill.rows("SELECT name FROM names WHERE name > ? ORDER BY name", "") == [("a",), ("b",)]


def test_a_failed_transaction_leaves_no_rows() -> None:
    with Spill("the names", SCHEMA, SourceError) as spill:
        with pytest.raises(SourceError):
            insert(spill, "a", "c", "a")
        assert spill.rows("SELECT * FROM names") == []
        insert(spill, "b")
        assert spill.rows("SELECT * FROM names") == [("b",)]


@pytest.mark.parametrize("error", [SourceError, ManifestError])
def test_a_full_disk_raises_the_given_error_class(error: type[SourceError | ManifestError]) -> None:
    with Spill("the names", SCHEMA, error) as spill:
        with spill.transaction() as database:
            database.execute("PRAGMA max_page_count = 2")
        with pytest.raises(error) as refusal:
            insert(spill, *(f"{number:0300}" for number in range(200)))
        assert str(refusal.value) == (
            "the temporary file of the names (in TMPDIR) cannot be written: the disk is full: free some space, and run "
            "the same command again"
        )
        assert spill.rows("SELECT * FROM names") == []


def test_other_errors_quote_sqlites_message() -> None:
    with (
        Spill("the names", SCHEMA, SourceError) as spill,
        pytest.raises(SourceError, match=r"cannot be written: UNIQUE constraint failed: names\.name$") as refusal,
    ):
        insert(spill, "a", "a")
    assert isinstance(refusal.value.__cause__, sqlite3.IntegrityError)


def test_threads_take_turns() -> None:
    with Spill("the names", SCHEMA, SourceError) as spill:

        def insert_many(number: int) -> None:
            for i in range(100):
                insert(spill, f"{number} {i}")

        threads = [Thread(target=insert_many, args=(number,)) for number in range(4)]
        with spill.transaction():
            for thread in threads:
                thread.start()
            assert all(thread.is_alive() for thread in threads)
        for thread in threads:
            thread.join()
        assert spill.rows("SELECT count(*) FROM names") == [(400,)]
