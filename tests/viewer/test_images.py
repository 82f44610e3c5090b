"""Where the source image of a map is looked for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import async_maps as am
from async_maps.viewer.images import ImageMissingError, Images
from tests.support.leftovers import leaves_nothing
from tests.support.s3 import upload
from tests.support.s3_proxy import counting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from async_maps.demo.seaweed import S3Server

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("images/val/1.jpg", "images/val/2.PNG", "images/img-1.webp", "images/odd.name", "images/a.jpg/b.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    return tmp_path / "images"


@pytest.fixture
def images(folder: Path) -> Iterator[Images]:
    found = Images(str(folder))
    yield found
    found.close()


@pytest.mark.fast
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("val/1", "val/1.jpg"),
        ("val/2", "val/2.PNG"),
        ("val/1.jpg", "val/1.jpg"),
        ("img-1/layer3", "img-1.webp"),
        ("img-1", "img-1.webp"),
        ("a.jpg/b", "a.jpg/b.jpg"),
    ],
)
def test_an_image_has_the_name_of_its_map_or_of_its_folder(images: Images, name: str, file: str) -> None:
    assert images.read(name) == f"images/{file}".encode()


@pytest.mark.fast
@pytest.mark.parametrize("name", ["val/3", "", "../secret", "val/../../secret", "val", "odd", "\0", "a.jpg/c"])
def test_a_missing_image_is_named_with_its_places(images: Images, name: str) -> None:
    with pytest.raises(ImageMissingError, match=r"looked for|no place"):
        images.read(name)


@pytest.mark.fast
def test_links_do_not_lead_out_of_the_folder(folder: Path, images: Images) -> None:
    (folder / "link.jpg").symlink_to(folder.parent / "secret.jpg")
    (folder / "inside.jpg").symlink_to(folder / "val" / "1.jpg")
    with pytest.raises(ImageMissingError):
        images.read("link")
    assert images.read("inside") == b"images/val/1.jpg"


@pytest.mark.fast
@pytest.mark.parametrize("template", ["{name}.jpg", "{parent}/{stem}.jpg"])
def test_a_template_has_one_place_for_each_map(folder: Path, template: str) -> None:
    images = Images(f"{folder}/{template}")
    assert images.read("val/1") == b"images/val/1.jpg"
    for name in ("val/2", "../secret", "val/../../secret"):
        with pytest.raises(ImageMissingError):
            images.read(name)
    images.close()


@pytest.mark.fast
@pytest.mark.parametrize("name", ["s3://other-bucket/secret", "/secret", "//secret", "val/../../secret"])
@pytest.mark.parametrize("template", ["{name}.jpg", "{parent}/{stem}.jpg", "{stem}.jpg"])
def test_a_name_leads_to_no_other_place_than_the_template(
    folder: Path, name: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("async_maps.filesystems.filesystem.Filesystems.remote", lambda *_: pytest.fail("S3 is asked"))
    for place in (template, f"{folder}/{template}"):
        images = Images(place)
        with pytest.raises(ImageMissingError):
            images.read(name)
        images.close()


@pytest.mark.fast
def test_a_template_is_found_after_the_folder_has_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "{a}").mkdir()
    (folder / "{a}" / "1.jpg").write_bytes(b"image")
    monkeypatch.chdir(folder / "{a}")
    images = Images("{name}.jpg")
    monkeypatch.chdir("/")
    assert images.read("1") == b"image"
    images.close()


@pytest.mark.fast
def test_a_map_in_no_folder_has_no_parent(folder: Path) -> None:
    (folder / "top.jpg").write_bytes(b"image")
    images = Images(f"{folder}/{{parent}}/{{stem}}.jpg")
    assert images.read("top") == b"image"
    with pytest.raises(ImageMissingError, match=f"looked for {folder}/x.jpg"):
        images.read("x")
    images.close()


@pytest.mark.fast
def test_a_folder_does_not_hide_an_image(folder: Path, images: Images) -> None:
    (folder / "000.jpg").mkdir()
    (folder / "000.png").write_bytes(b"image")
    assert images.read("000") == b"image"


@pytest.mark.fast
@pytest.mark.parametrize(
    "place",
    [
        "{index}.jpg",
        "{name.__class__}",
        "{name",
        "{}",
        "missing",
        "http://host/{name}",
        "{name:d}",
        "{name!r}.jpg",
        "s3://{name}/image.jpg",
        "s3://bucket-{parent}/{stem}",
        "s3://{name}",
    ],
)
def test_a_place_that_cannot_be_used_is_refused(place: str) -> None:
    with pytest.raises(am.SettingsError):
        Images(place)


@pytest.mark.fast
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_listing_names_an_image_for_each_map(folder: Path, suffix: str) -> None:
    rows = [("a", "images/val/1.jpg"), ("b", str(folder / "val" / "2.PNG")), ("gone", "gone.jpg"), ("empty", "")]
    path = folder.parent / f"listing{suffix}"
    if suffix == ".csv":
        path.write_text("name,image\n" + "".join(f"{name},{image}\n" for name, image in rows))
    else:
        path.write_text("".join(json.dumps({"name": name, "image": image}) + "\n" for name, image in rows))
    images = Images(str(path))
    assert images.read("a") == b"images/val/1.jpg"
    assert images.read("b") == b"images/val/2.PNG"
    for name in ("gone", "empty", "c"):
        with pytest.raises(ImageMissingError):
            images.read(name)
    images.close()


@pytest.mark.fast
def test_a_listing_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "listing.csv").write_bytes(b"name,image\ncaf\xe9,a.jpg\n")
    with pytest.raises(am.SourceError, match="line 2: the text is not UTF-8"):
        Images(str(tmp_path / "listing.csv"))


@pytest.mark.fast
def test_a_listing_without_the_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "listing.csv").write_text("name,path\na,b\n")
    with pytest.raises(am.SourceError, match="name and image"):
        Images(str(tmp_path / "listing.csv"))


def test_the_suffix_of_the_last_image_is_looked_for_first(
    bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(bucket, {f"images/{i}.webp": b"image" for i in range(5)})
    with counting(s3, monkeypatch) as proxy:
        images = Images(f"s3://{bucket}/images/")
        assert [images.read(str(i)) for i in range(5)] == [b"image"] * 5
        images.close()
    paths = [asked.path.rpartition("/")[2] for asked in proxy.gets()]
    assert paths == ["0.jpg", "0.png", "0.jpeg", "0.webp", "1.webp", "2.webp", "3.webp", "4.webp"]


def test_images_in_s3_by_template_and_listing(bucket: str, s3: S3Server, tmp_path: Path) -> None:
    upload(bucket, {"images/a b.jpg": b"image"})
    (tmp_path / "listing.csv").write_text(f"name,image\nx,s3://{bucket}/images/a b.jpg\n")
    for place, name in ((f"s3://{bucket}/images/{{name}}.jpg", "a b"), (str(tmp_path / "listing.csv"), "x")):
        images = Images(place)
        assert images.read(name) == b"image"
        with pytest.raises(ImageMissingError):
            images.read("missing")
        images.close()


def test_images_of_a_listing_in_s3_are_below_its_prefix(bucket: str, s3: S3Server) -> None:
    upload(bucket, {"data/listing.csv": b"name,image\nx,images/a.jpg\n", "data/images/a.jpg": b"image"})
    images = Images(f"s3://{bucket}/data/listing.csv")
    assert images.read("x") == b"image"
    images.close()


def test_that_an_image_is_missing_in_s3_is_known_for_a_moment(
    bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(bucket, {"images/a.jpg": b"image"})
    with counting(s3, monkeypatch) as proxy:
        images = Images(f"s3://{bucket}/images")
        for _ in range(3):
            with pytest.raises(ImageMissingError, match=r"images/b\.jpg"):
                images.read("b")
        asked = len(proxy.gets())
        assert images.read("a") == b"image"
        images.close()
    assert asked == 8
