"""Sources in S3, on a real server: listing, reading, the number of requests, and errors."""

from __future__ import annotations

import io
import threading
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from threading import Event
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import numpy as np
import pytest

import async_maps as am
from async_maps.demo import seaweed
from async_maps.errors import SourceError
from async_maps.filesystems.filesystem import Filesystems, UnavailableError
from async_maps.filesystems.s3 import S3Filesystem
from async_maps.outcomes import Failure
from async_maps.settings import S3Settings
from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.formats.registry import FORMATS, Readers
from async_maps.sources.isolation import DecoderProcess, IsolatedReaders
from tests.support.leftovers import leaves_nothing
from tests.support.maps import MAP, npy, npz, random_map
from tests.support.odd_server import OddServer, odd_server
from tests.support.s3 import delete, upload
from tests.support.s3_proxy import Proxy, Refusal, counting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

__all__ = ["odd_server"]

IMPATIENT = S3Settings(max_attempts=1, connect_timeout_s=1.0, read_timeout_s=1.0)

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


@pytest.fixture
def proxy(s3: seaweed.S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with counting(s3, monkeypatch) as proxy:
        yield proxy


def listed(place: str, **options: Any) -> list[ActivationMap | Failure]:
    return list(open_source(place, **options))


def names(place: str) -> list[str]:
    entries = listed(place)
    assert all(isinstance(entry, ActivationMap) for entry in entries), entries
    return [entry.name for entry in entries]


def read(map_: ActivationMap | Failure) -> NDArray[Any]:
    assert isinstance(map_, ActivationMap)
    assert map_.path is not None
    with Filesystems() as filesystems, Readers(filesystems) as readers:
        return readers.read(map_.path, map_.part)


@pytest.fixture
def filesystem() -> Iterator[S3Filesystem]:
    with closing(S3Filesystem()) as filesystem:
        yield filesystem


def passed_over(place: str) -> dict[str, int]:
    suffixes: list[str] = []
    list(open_source(place, pass_over=suffixes.append))
    return Counter(suffixes)


def opened(filesystem: S3Filesystem, path: str) -> BinaryIO:
    return filesystem.open(path)


def test_closing_does_not_wait_for_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answered, client = Event(), Event(), Mock()

    def make(_: S3Filesystem) -> Any:
        asked.set()
        assert answered.wait(30)
        return client

    monkeypatch.setattr(S3Filesystem, "_make_client", make)
    filesystem = S3Filesystem()
    with ThreadPoolExecutor(1) as thread:
        finding = thread.submit(filesystem.find, "s3://bucket/a.npy")
        assert asked.wait(30)
        filesystem.close()
        answered.set()
        with pytest.raises(SourceError, match="the source is closed"):
            finding.result()
    client.close.assert_called_once_with()


# Passed over ---------------------------------------------------------------------------------------------------------


def test_objects_that_are_no_maps_are_passed_over_by_suffix(bucket: str) -> None:
    stack = npy(np.zeros((2, 3, 5)))
    objects = {"m/a.npy": npy(MAP), "m/s.npy": stack, "m/s.names.txt": b"x\ny\n", "m/a.jpg": b"", "m/deep/B.JPG": b""}
    upload(bucket, {**objects, "m/README": b"", "m/c.pkl": b"", "other.jpg": b""})
    assert passed_over(f"s3://{bucket}/m/") == {".jpg": 2, "": 1, ".pkl": 1}
    assert passed_over(f"s3://{bucket}/m/*") == {".jpg": 1, "": 1, ".pkl": 1}
    assert passed_over(f"s3://{bucket}/m/*.npy") == {}


# Listing ------------------------------------------------------------------------------------------------------------


def test_a_prefix_is_listed_in_key_order_with_relative_names(bucket: str) -> None:
    keys = ["maps/a.npy", "maps/b/c d.npy", "maps/b/é.NPY", "maps/z/y/x.npy", "maps/10.npy", "maps/9.npy"]
    others = ["maps.npy", "mapsy/a.npy", "maps/notes.txt", "other/a.npy"]
    upload(bucket, {key: npy() for key in (*keys, *others)})
    expected = [key.removeprefix("maps/")[: -len(".npy")] for key in sorted(keys)]
    assert names(f"s3://{bucket}/maps/") == expected
    assert names(f"s3://{bucket}/maps") == expected
    assert len(names(f"s3://{bucket}")) == len(names(f"s3://{bucket}/")) == len(keys) + 3


def test_an_entry_has_the_path_size_and_etag_of_its_object(bucket: str) -> None:
    upload(bucket, {"maps/a.npy": npy()})
    (entry,) = listed(f"s3://{bucket}/maps/")
    with closing(S3Filesystem()) as filesystem:
        found = filesystem.find(f"s3://{bucket}/maps/a.npy")
    assert found is not None
    path = f"s3://{bucket}/maps/a.npy"
    assert entry == ActivationMap("a", path, f"{len(npy())}-{found.etag}", MAP.nbytes, path=path)
    np.testing.assert_array_equal(read(entry), MAP)
    upload(bucket, {"maps/a.npy": npy(MAP / 2)})
    (changed,) = listed(f"s3://{bucket}/maps/")
    assert changed.fingerprint != entry.fingerprint


def test_a_single_object_is_named_by_the_end_of_its_key(bucket: str) -> None:
    upload(bucket, {"deep/down/a.npy": npy(), "deep/down/two.npz": npz(x=MAP, y=MAP / 2)})
    (entry,) = listed(f"s3://{bucket}/deep/down/a.npy")
    assert entry.name == "a"
    x, y = listed(f"s3://{bucket}/deep/down/two.npz")
    assert (x.name, y.name) == ("two/x", "two/y")
    assert y.source == f"s3://{bucket}/deep/down/two.npz[y]"
    np.testing.assert_array_equal(read(y), MAP / 2)


def test_a_prefix_may_end_with_a_map_suffix(bucket: str) -> None:
    upload(bucket, {"run.npy/a.npy": npy()})
    assert names(f"s3://{bucket}/run.npy") == ["a"]


def test_a_stack_becomes_its_maps(bucket: str) -> None:
    stack = np.random.default_rng(0).random((3, 8, 8), np.float32)
    upload(bucket, {"stack.npy": npy(stack)})
    entries = listed(f"s3://{bucket}/stack.npy")
    assert [entry.name for entry in entries] == ["stack/000000", "stack/000001", "stack/000002"]
    for entry, plane in zip(entries, stack, strict=True):
        np.testing.assert_array_equal(read(entry), plane)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("maps/*.npy", ["a", "cam_1"]),
        ("maps/cam_*", ["cam_1"]),
        ("maps/**/cam_?.npy", ["cam_1", "val/cam_2", "val/deep/cam_3"]),
        ("maps/**", ["a", "cam_1", "val/cam_2", "val/deep/cam_3"]),
        ("maps/v*/*", ["val/cam_2"]),
        ("m*/val/*", ["maps/val/cam_2"]),
        ("maps/[ab].npy", ["a"]),
    ],
)
@pytest.mark.slow
def test_a_glob_matches_the_same_names_as_on_disk(
    bucket: str, pattern: str, expected: list[str], tmp_path: Any
) -> None:
    keys = ["maps/a.npy", "maps/cam_1.npy", "maps/.hidden.npy", "maps/val/cam_2.npy", "maps/val/deep/cam_3.npy"]
    upload(bucket, {key: npy() for key in keys})
    for key in keys:
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(npy())
    assert names(f"s3://{bucket}/{pattern}") == expected
    assert [entry.name for entry in open_source(f"{tmp_path}/{pattern}")] == expected


@pytest.mark.slow
def test_an_existing_prefix_is_not_treated_as_a_glob(bucket: str) -> None:
    upload(bucket, {"run[1]/a.npy": npy(), "run1/b.npy": npy()})
    assert names(f"s3://{bucket}/run[1]/") == ["a"]


@pytest.mark.slow
def test_each_page_is_requested_when_it_is_needed(bucket: str, proxy: Proxy) -> None:
    upload(bucket, {f"maps/{i:05}.npy": b"" for i in range(1010)})
    entries = iter(open_source(f"s3://{bucket}/maps/", known=lambda maps: {map_.source for map_ in maps}))
    names = [next(entries).name]
    assert len([asked for asked in proxy.asked if asked.query]) == 1
    names += [entry.name for entry in entries]
    assert len([asked for asked in proxy.asked if asked.query]) == 2
    assert names == [f"{i:05}" for i in range(1010)]
    assert not proxy.gets()


def test_an_invalid_name_fails_alone(bucket: str) -> None:
    upload(bucket, {"maps/a.npy": npy(), "maps/b\tc.npy": npy(), "maps/d.npy": npy()})
    entries = listed(f"s3://{bucket}/maps/")
    assert [entry.name for entry in entries if isinstance(entry, ActivationMap)] == ["a", "d"]
    (failure,) = [entry for entry in entries if isinstance(entry, Failure)]
    assert failure.source == f"s3://{bucket}/maps/b\\tc.npy"
    assert "control character" in failure.reason


def test_an_object_with_other_content_fails_alone(bucket: str) -> None:
    upload(
        bucket, {"a.npy": npy(), "bad.npz": b"no archive", "c.npz": npz(x=MAP), "empty.npy": b"", "text.npy": b"x" * 99}
    )
    entries = listed(f"s3://{bucket}/")
    failures = {entry.name: entry.reason for entry in entries if isinstance(entry, Failure)}
    assert set(failures) == {"bad"}
    assert "expected an .npz archive" in failures["bad"]
    for name, reason in (("empty", "found an empty one"), ("text", "expected an .npy file")):
        (map_,) = [entry for entry in entries if entry.name == name]
        with pytest.raises(SourceError, match=reason):
            read(map_)


def test_an_object_known_to_be_one_map_is_not_opened(bucket: str, proxy: Proxy) -> None:
    upload(bucket, {f"{i}.npy": npy() for i in range(20)})
    place = f"s3://{bucket}/"
    first = listed(place)
    assert len(proxy.gets()) == 20
    asked: list[tuple[str, str | None]] = []

    def known(maps: Any) -> set[str]:
        asked.extend((map_.name, map_.fingerprint) for map_ in maps)
        return {map_.source for map_ in maps if map_.name != "7"}

    second = listed(place, known=known)
    assert len(proxy.gets()) == 21
    assert [(entry.name, entry.fingerprint) for entry in second] == asked
    assert asked == [(entry.name, entry.fingerprint) for entry in first]


def test_objects_that_differ_only_in_format_are_listed_by_every_run(bucket: str, tmp_path: Path) -> None:
    settings = am.Settings(workers=0)

    def run() -> tuple[int, int, int]:
        report = am.run(f"s3://{bucket}/", tmp_path / "out", settings=settings, manifest=tmp_path / "m.sqlite")
        return report.uploaded, report.skipped, report.failed

    upload(bucket, {"q.npy": npy(), "q.npz": npz(a=random_map(1), b=random_map(2))})
    assert run() == (3, 0, 0)
    assert run() == (0, 3, 0)
    upload(bucket, {"q.npz": npz(a=random_map(3), b=random_map(4))})
    assert run() == (2, 1, 0)


@pytest.mark.slow
def test_objects_are_opened_concurrently_within_the_limit(bucket: str, proxy: Proxy) -> None:
    upload(bucket, {f"{i:03}.npy": npy() for i in range(64)})
    proxy.gate.clear()
    with ThreadPoolExecutor(1) as thread:
        listing = thread.submit(names, f"s3://{bucket}/")
        while proxy.under_way < 4:
            time.sleep(0.005)
        time.sleep(0.2)  # time for a 17th to arrive
        proxy.gate.set()
        assert listing.result() == [f"{i:03}" for i in range(64)]
    assert proxy.most_concurrent <= 16


@pytest.mark.slow
def test_closing_a_listing_early_ends_its_requests_and_threads(bucket: str, proxy: Proxy) -> None:
    upload(bucket, {f"{i:03}.npy": npy() for i in range(200)})
    with closing(iter(open_source(f"s3://{bucket}/"))) as entries:  # type: ignore[type-var]
        next(entries)
    assert len(proxy.gets()) < 50
    for thread in threading.enumerate():
        if thread.name.startswith("async-maps"):
            # The close does not wait for it.
            thread.join(60)
            assert not thread.is_alive()


def test_an_outage_while_names_are_read_blames_no_map(
    bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("async_maps.sources.hearing._PAUSE_S", 0.01)
    upload(bucket, {"a.npy": npy(), "s.npy": npy(np.stack([random_map(0)] * 2)), "s.names.txt": b"x\ny\n"})
    refusals = [Refusal(503, "ServiceUnavailable")] * 2

    def refuse(method: str, path: str, _query: str) -> Refusal | None:
        return refusals.pop() if method == "GET" and path.endswith(".names.txt") and refusals else None

    proxy.refuse = refuse
    assert [entry.name for entry in listed(f"s3://{bucket}/", s3=IMPATIENT)] == ["a", "s/x", "s/y"]


# Places that cannot be listed ---------------------------------------------------------------------------------------


def test_a_bucket_that_does_not_exist_is_named(s3: seaweed.S3Server) -> None:
    with pytest.raises(SourceError, match=r"^s3://no-such-bucket/maps/: .*the bucket does not exist"):
        listed("s3://no-such-bucket/maps/")


@pytest.mark.parametrize("place", ["s3://", "s3:///maps", "s3://a b/maps"])
def test_an_invalid_bucket_name_is_refused(place: str) -> None:
    with pytest.raises(SourceError, match="is not a valid bucket name"):
        open_source(place)


@pytest.mark.seaweedfs
def test_wrong_credentials_are_reported_without_their_values(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-private")
    with pytest.raises(SourceError, match="the secret key is wrong") as refusal:
        listed(f"s3://{bucket}/maps/")
    assert "wrong-and-private" not in str(refusal.value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unknown")
    with pytest.raises(SourceError, match="the access key does not exist there"):
        listed(f"s3://{bucket}/maps/")


def test_missing_credentials_are_reported(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(SourceError, match="no AWS credentials found"):
        listed(f"s3://{bucket}/maps/")


def test_expired_credentials_are_reported(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2020-01-02T03:04:05Z")
    with pytest.raises(SourceError, match="the AWS credentials have expired: sign in again, or set new ones"):
        listed(f"s3://{bucket}/maps/")


def test_credentials_refused_to_the_decoder_process_do_not_pass(
    odd_server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd_server.answers = {"GET": (403, "InvalidAccessKeyId")}
    with (
        DecoderProcess(IMPATIENT) as process,
        closing(IsolatedReaders(process)) as readers,
        pytest.raises(UnavailableError, match="the access key does not exist there") as caught,
    ):
        readers.read("s3://bucket/a.h5", [None, None])
    assert not caught.value.may_pass


def test_an_unreachable_server_is_reported(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="Could not connect"):
        listed(f"s3://{bucket}/maps/", s3=IMPATIENT)


def test_an_unknown_aws_profile_is_reported(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(SourceError, match=r"the AWS configuration cannot be used: .*nobody"):
        listed(f"s3://{bucket}/maps/")


# Objects as files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65_536, 8 * 2**20, 8 * 2**20 + 1, 9 * 2**20 + 77])
@pytest.mark.slow
def test_an_object_reads_like_a_local_file(bucket: str, filesystem: S3Filesystem, size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    upload(bucket, {"file.bin": data})
    local = io.BytesIO(data)
    rng = np.random.default_rng(1)
    with opened(filesystem, f"s3://{bucket}/file.bin") as file:
        assert file.seekable()
        assert file.readable()
        assert not file.writable()
        assert file.seek(0, 2) == size
        for _ in range(40):
            position, length = int(rng.integers(0, size + 10)), int(rng.choice([0, 1, 100, 70_000, 3_000_000]))
            assert file.seek(position) == local.seek(position)
            assert file.read(length) == local.read(length)
            assert file.tell() == local.tell() or position > size
        file.seek(0)
        assert file.read() == data
        assert file.read(1) == b""
        with pytest.raises(OSError, match="Invalid argument"):
            file.seek(-1)


def test_an_object_of_up_to_8_mib_takes_one_request(bucket: str, proxy: Proxy) -> None:
    rng = np.random.default_rng(0)
    upload(bucket, {"archive.npz": npz(**{f"m{i}": rng.random((256, 256), np.float32) for i in range(25)})})
    entries = listed(f"s3://{bucket}/archive.npz")
    before = len(proxy.gets())
    with Filesystems() as filesystems, Readers(filesystems) as readers:
        for entry in entries:
            assert isinstance(entry, ActivationMap)
            assert readers.read(str(entry.path), entry.part).shape == (256, 256)
    assert len(entries) == 25
    assert len(proxy.gets()) - before == 1


def test_a_map_of_a_large_stack_takes_one_request_of_its_bytes(bucket: str, proxy: Proxy) -> None:
    stack = np.random.default_rng(0).random((20, 512, 512), np.float32)
    upload(bucket, {"stack.npy": npy(stack)})
    entries = listed(f"s3://{bucket}/stack.npy")
    assert len(proxy.gets(of="stack.npy")) == 1
    with Filesystems() as filesystems, Readers(filesystems) as readers:
        for i in (17, 3, 4, 19, 0):
            entry = entries[i]
            assert isinstance(entry, ActivationMap)
            np.testing.assert_array_equal(readers.read(str(entry.path), entry.part), stack[i])
    # One request for the header, then one for each map.
    gets = proxy.gets(of="stack.npy")[1:]
    assert len(gets) == 6
    assert sum(asked.size for asked in gets[1:]) < 5.1 * stack[0].nbytes


def test_a_large_archive_is_listed_and_read_with_few_requests(bucket: str, proxy: Proxy) -> None:
    rng = np.random.default_rng(0)
    data = npz(**{f"m{i:03}": rng.random((128, 128), np.float32) for i in range(200)})
    upload(bucket, {"archive.npz": data})
    assert len(data) > 12 * 2**20
    entries = listed(f"s3://{bucket}/archive.npz")
    assert len(entries) == 200
    assert len(proxy.gets()) < 12
    before = len(proxy.gets())
    with Filesystems() as filesystems, Readers(filesystems) as readers:
        for entry in entries:
            assert isinstance(entry, ActivationMap)
            readers.read(str(entry.path), entry.part)
    assert len(proxy.gets()) - before < 12


@pytest.mark.slow
def test_compressed_members_of_a_large_archive_are_read(bucket: str) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"m{i}": rng.random((600, 600), np.float32) for i in range(10)}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", npy(array))
    upload(bucket, {"archive.npz": file.getvalue()})
    for entry in listed(f"s3://{bucket}/archive.npz"):
        np.testing.assert_array_equal(read(entry), arrays[entry.name.removeprefix("archive/")])


def test_an_object_replaced_while_it_is_read_is_an_error(bucket: str, filesystem: S3Filesystem) -> None:
    upload(bucket, {"file.bin": b"a" * 9 * 2**20})
    with opened(filesystem, f"s3://{bucket}/file.bin") as file:
        assert file.read(10) == b"a" * 10
        upload(bucket, {"file.bin": b"b" * 9 * 2**20})
        file.seek(5 * 2**20)
        with pytest.raises(SourceError, match="the object was replaced while it was read"):
            file.read(10)


@pytest.mark.slow
def test_an_object_deleted_while_it_is_read_is_not_found(bucket: str, filesystem: S3Filesystem) -> None:
    upload(bucket, {"file.bin": b"a" * 9 * 2**20})
    with opened(filesystem, f"s3://{bucket}/file.bin") as file:
        delete(bucket, "file.bin")
        file.seek(5 * 2**20)
        with pytest.raises(FileNotFoundError):
            file.read(10)
    with pytest.raises(FileNotFoundError):
        opened(filesystem, f"s3://{bucket}/file.bin")


def test_a_truncated_response_is_requested_again(bucket: str, proxy: Proxy) -> None:
    upload(bucket, {"a.npy": npy()})
    proxy.break_off = 2
    with (
        closing(S3Filesystem(S3Settings(max_attempts=3))) as filesystem,
        opened(filesystem, f"s3://{bucket}/a.npy") as file,
    ):
        assert file.read() == npy()
    proxy.break_off = 2
    with closing(S3Filesystem(S3Settings(max_attempts=2))) as filesystem, pytest.raises(SourceError):
        opened(filesystem, f"s3://{bucket}/a.npy")


@pytest.mark.slow
def test_a_missing_response_times_out(bucket: str, proxy: Proxy) -> None:
    upload(bucket, {"a.npy": npy()})
    proxy.gate.clear()
    with closing(S3Filesystem(IMPATIENT)) as filesystem, pytest.raises(SourceError, match=r"[Tt]imeout"):
        opened(filesystem, f"s3://{bucket}/a.npy")


def test_a_closed_filesystem_refuses_to_open_files(bucket: str) -> None:
    upload(bucket, {"a.npy": npy()})
    filesystems = Filesystems()
    filesystems.remote(f"s3://{bucket}").open(f"s3://{bucket}/a.npy").close()
    filesystems.close()
    with pytest.raises(SourceError, match="closed"):
        filesystems.of(f"s3://{bucket}/a.npy").open(f"s3://{bucket}/a.npy")
    with Filesystems() as unused:
        pass
    with pytest.raises(SourceError, match="closed"):
        unused.of("s3://bucket/a.npy").open("s3://bucket/a.npy")


@pytest.mark.slow
def test_threads_can_share_a_filesystem(bucket: str, filesystem: S3Filesystem) -> None:
    stack = np.random.default_rng(0).random((32, 256, 256), np.float32)
    upload(bucket, {"stack.npy": npy(stack)})
    wrong: list[int] = []

    def work(index: int) -> None:
        with opened(filesystem, f"s3://{bucket}/stack.npy") as file:
            file.seek(-stack[index:].nbytes, 2)
            if file.read(stack[0].nbytes) != stack[index].tobytes():
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Zarr ---------------------------------------------------------------------------------------------------------------


def test_the_objects_of_a_zarr_hierarchy_are_one_file(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from async_maps.filesystems.filesystem import Filesystems
    from async_maps.sources.named import NamedFile
    from async_maps.sources.options import Scan
    from async_maps.sources.remote_objects import RemoteObjects

    monkeypatch.setitem(FORMATS, ".zarr", "zarr")
    keys = ["maps/a.npy", "maps/b.zarr/zarr.json", "maps/b.zarr/c/0/0", "maps/b.zarr/x.npy", "maps/c.zarr/zarr.json"]
    upload(bucket, {key: npy() for key in (*keys, "maps/d.npy")})

    def files(place: str) -> list[tuple[str, str, str | None]]:
        with Filesystems() as filesystems:
            found = RemoteObjects(place, None, Scan()).files(filesystems)
            return [(file.name, file.path, file.fingerprint) for file in found if isinstance(file, NamedFile)]

    root = f"s3://{bucket}/maps"
    first = files(f"{root}/")
    assert [(name, path) for name, path, _ in first] == [
        ("a", f"{root}/a.npy"), ("b", f"{root}/b.zarr"), ("c", f"{root}/c.zarr"), ("d", f"{root}/d.npy"),
    ]  # fmt: skip
    assert [name for name, *_ in files(f"{root}/*.zarr")] == ["b", "c"]
    for place in (f"{root}/b.zarr", f"{root}/b.zarr/"):
        assert files(place) == [("b", f"{root}/b.zarr", first[1][2])]
    with closing(S3Filesystem()) as filesystem:
        assert filesystem.fingerprint_below(f"{root}/b.zarr") == first[1][2]
        assert filesystem.fingerprint_below(f"{root}/none.zarr") is None
    upload(bucket, {"maps/b.zarr/c/0/0": b"other"})
    second = files(f"{root}/")
    assert second[1][2] != first[1][2]
    assert [second[0], *second[2:]] == [first[0], *first[2:]]


def test_a_failed_listing_leaves_no_connection(s3: seaweed.S3Server) -> None:
    with suppress(SourceError):
        listed("s3://no-such-bucket/")
