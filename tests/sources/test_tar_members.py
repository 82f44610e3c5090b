"""Members of a tar that are no .npy files."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import numpy as np
import pytest

from async_maps.outcomes import Failure
from async_maps.sources import open_source
from tests.support.entries import (
    STACK,
    assert_same,
    failures_of,
    names_of,
    passed_over,
    plane_by_plane,
    read_all,
    save_tar,
    why_not,
)
from tests.support.maps import MAP, npy, npz
from tests.support.torch_files import torch_file

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fast


CONTENTS = {
    "npy": npy(MAP),
    "npy.gz": gzip.compress(npy(MAP)),
    "npz": npz(a=MAP, labels=np.arange(3)),
    "pt": torch_file({"cam": MAP, "label": 3}),
    "pth": torch_file(MAP),
    "PTH": torch_file(MAP, old=True),
}


@pytest.mark.parametrize("suffix", CONTENTS)
def test_the_only_array_of_a_member_has_its_name(maps: Path, suffix: str) -> None:
    content = CONTENTS[suffix]
    save_tar(maps / "x.tar", {f"000001.cam.{suffix}": content, f"./a/000002.cam.{suffix}": content, "1.jpg": b""})
    assert_same(read_all(maps), {"x/000001.cam": MAP, "x/a/000002.cam": MAP})


def test_several_arrays_of_a_member_are_below_its_name(maps: Path) -> None:
    (maps / "more").mkdir()
    save_tar(
        maps / "x.tar",
        {
            "1.heat.npz": npz(a=MAP, b=STACK),
            "2.pt": torch_file({"c": [MAP * 2, MAP * 3]}),
            "3.npy.gz": gzip.compress(npy(STACK * 2)),
        },
    )
    expected = {
        "x/1.heat/a": MAP,
        **plane_by_plane("x/1.heat/b", STACK),
        "x/2/c/000000": MAP * 2,
        "x/2/c/000001": MAP * 3,
        **plane_by_plane("x/3", STACK * 2),
    }
    assert_same(read_all(maps), expected)


def test_hidden_members_and_side_data_are_passed_over(maps: Path) -> None:
    content = torch_file({"labels": np.arange(3), "cam": MAP})
    save_tar(maps / "x.tar", {"1.pt": content, "._1.pt": b"", "__MACOSX/1.npz": b"", ".a/1.npz": b"", "1.cls": b"3"})
    assert names_of(open_source(maps)) == ["x"]
    assert passed_over(maps) == ["arrays below two dimensions", *["hidden files"] * 3, ".cls"]


def test_a_damaged_member_fails_alone(maps: Path) -> None:
    members = {
        "1.npz": b"PK",
        "2.pt": b"\x80\x02}.",
        "3.npy.gz": b"\x1f\x8b",
        "4.pth": torch_file({}),
        "5.npy": npy(MAP),
    }
    save_tar(maps / "x.tar", members)
    *damaged, sound = open_source(maps)
    assert names_of([sound]) == ["x/5"]
    assert [why_not(entry) for entry in damaged] == [
        "expected an .npz archive (a zip file): File is not a zip file",
        "expected a file of torch.save, found another pickle",
        "expected an .npy file in gzip: Compressed file ended before the end-of-stream marker was reached",
        "the file contains no tensor",
    ]


def test_members_of_one_name_and_two_formats_are_refused(maps: Path) -> None:
    save_tar(maps / "x.tar", {"1.cam.npy": npy(MAP), "2.npy": npy(MAP), "1.cam.pt": torch_file(MAP)})
    entries = list(open_source(maps))
    assert names_of(entries) == ["x/2"]
    assert len(failures_of(entries)) == 2
    assert all(isinstance(entry, Failure) or entry.name == "x/2" for entry in entries)


def test_a_member_behind_the_end_of_the_archive_is_a_failure(maps: Path) -> None:
    save_tar(maps / "x.tar", {"1.npz": npz(a=np.zeros((100, 100)))})
    content = (maps / "x.tar").read_bytes()
    (maps / "x.tar").write_bytes(content[: 512 + 1000])
    first, *_ = open_source(maps)
    assert why_not(first).startswith("truncated: its data end at byte")
