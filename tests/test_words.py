"""Words that make a sentence be read twice stay out of source, documentation and tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parent.parent
# Spelled so that they are not found here.
MANNERED = ("[w]hatever", "[l]ikewise", r"so\s+many", r"at\s+once")
ALLOWED = 20
TEXT = {".py", ".pyi", ".md", ".toml", ".yaml", ".yml", ".json", ".service", ".timer", ""}


def test_mannered_words_are_rare() -> None:
    pattern = re.compile(rf"\b({'|'.join(MANNERED)})\b", re.IGNORECASE)
    folders = ("async_maps", "tests", "bench", "configs", ".github", ".ci")
    files = [*ROOT.glob("*.md"), *(path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())]
    found = []
    for path in sorted(files):
        if path.suffix not in TEXT or "__pycache__" in path.parts:
            continue
        # A line break may hide a pair of words, in a comment too.
        text = re.sub(r"\n\s*#?\s*", "\n", path.read_text(encoding="utf-8"))
        for match in pattern.finditer(text):
            start, end = max(0, match.start() - 40), match.end() + 40
            found.append(f"{path.relative_to(ROOT)}: ...{' '.join(text[start:end].split())}...")
    count = len(found)
    assert count <= ALLOWED, "\n".join([f"{count} found, {ALLOWED} allowed; write them plainly:", *found])
