from __future__ import annotations

import posixpath
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from async_maps.errors import InputValidationError
from async_maps.keys import MAX_KEY_BYTES, KeyTemplate, check_name, printable
from async_maps.stores.files import FileStore
from tests.support.properties import examples

pytestmark = pytest.mark.fast

DEFAULT = KeyTemplate("{name}.png")

# Any text, including surrogates (undecodable bytes of file names), and often the parts of paths.
_TEXTS = st.text() | st.lists(st.sampled_from(["..", ".", "", "a", "b c", "é", "~", "\\", "%2e%2e", "x.npy"])).map(
    "/".join
)
_PREFIXES = st.sampled_from(["", "p", "maps/v1", "a b/é"])


@examples(100)
@given(prefix=_PREFIXES, name=_TEXTS | st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1))
@example(prefix="p", name="../other/x")
@example(prefix="p", name="a/../../x")
@example(prefix="", name="/etc/x")
def test_no_accepted_name_leaves_its_prefix(prefix: str, name: str) -> None:
    try:
        check_name(name)
        key = DEFAULT.key(prefix, name)
    except InputValidationError:
        return
    assert posixpath.normpath(key) == key
    assert not key.startswith(("/", ".."))
    assert key == (f"{prefix}/" if prefix else "") + f"{name}.png"

    url = FileStore("/the/folder").locator(key)
    path = unquote(urlsplit(url).path)
    assert urlsplit(url)[3:] == ("", "")
    assert path == posixpath.normpath(path) == f"/the/folder/{key}"
    assert Path(path).is_relative_to("/the/folder")


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "val/0001",
        "a b",
        " leading and trailing ",
        "a+b%2f~#?&='()!*,;:@$[]{}^`|\\\"<>",
        "accents/ÀÉîõü",
        "emoji/🧠🔥",
        "..a",
        "a..",
        "a.b.c",
        "...",
        ".hidden/x",
        "~/x",
        "C:/x",
    ],
)
def test_odd_names_are_accepted(name: str) -> None:
    check_name(name)
    assert DEFAULT.key("p", name) == f"p/{name}.png"


@pytest.mark.parametrize(
    "name", ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/..", "a/../b", "./a", "a/.", "a/./b", "//server/share"]
)
def test_names_that_are_not_a_relative_path_are_refused(name: str) -> None:
    with pytest.raises(InputValidationError, match=r"the name '.*': (empty parts are|'\.\.?' is) not allowed"):
        check_name(name)


@pytest.mark.parametrize("character", [*map(chr, range(32)), "\x7f"])
def test_control_characters_are_refused_and_shown_escaped(character: str) -> None:
    with pytest.raises(InputValidationError, match="has a control character: rename the file") as refusal:
        check_name(f"a{character}b")
    assert str(refusal.value).isprintable()


def test_undecodable_bytes_are_refused_and_shown_escaped() -> None:
    with pytest.raises(InputValidationError, match=r"the name caf\\udce9 is not UTF-8: rename the file"):
        check_name(b"caf\xe9".decode(errors="surrogateescape"))


@pytest.mark.parametrize("letter", ["a", "é", "🧠"])
def test_a_key_longer_than_s3_allows_is_refused(letter: str) -> None:
    room = MAX_KEY_BYTES - len("prefix/.png")
    longest = letter * (room // len(letter.encode()))
    longest += "a" * (room - len(longest.encode()))
    assert len(DEFAULT.key("prefix", longest).encode()) == MAX_KEY_BYTES
    with pytest.raises(InputValidationError, match=r"the key is 1,025 bytes long, and S3 allows 1,024") as refusal:
        DEFAULT.key("prefix", longest + "a")
    assert len(str(refusal.value)) < 200


@examples(100)
@given(_TEXTS)
@example("line\nbreak \udce9 é 🧠")
@example("\u2028\u200b\xa0")
def test_printable_text_can_be_printed_stored_and_sent(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()
    if text.isprintable():
        assert shown == text
    else:
        assert shown.encode().decode("unicode_escape").encode("utf-16", "surrogatepass") == text.encode(
            "utf-16", "surrogatepass"
        )
