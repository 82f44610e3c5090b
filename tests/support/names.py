"""Names with characters that are special in keys and URLs."""

from __future__ import annotations

AWKWARD = (
    *("plain", "with space", " leading blank", "trailing blank ", "a+b", "100%", "%41", "~tilde", "#hash", "why?"),
    *("a&b", "a=b", "o'clock", "(paren)", "bang!", "star*", "a,b;c:d@e$f", 'quo"te', "<tag>", "[{|^`"),
    *("café", "cafe\N{COMBINING ACUTE ACCENT}", "日本語", "🧠🔥", "\xa0", "x.y.z", "..x", "deep/" * 20 + "x"),
)  # fmt: skip
