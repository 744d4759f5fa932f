# ruff: noqa: RUF001
"""Texts that tell tokenizers apart: scripts, blanks, digits, marks, code, markup, and what normalisers rewrite."""

from __future__ import annotations

PROBES = (
    "",
    " ",
    "The teacher runs once; students train many times.",
    "the TEACHER Runs oNCE, don't it? I'll say we've 'quoted' \"twice\"…",
    "  two  blanks   three\tone tab\t\ttwo\nline\r\nline\n\n\nlines \u00a0no-break\u2003em\u3000ideographic ",
    "trailing blanks   ",
    "\n\n  indented\n\tdeeper\n",
    "0 1 12 123 1234 12345 1,234,567.89 3.14e-10 0xDEADBEEF 2026-11-28T12:00:00Z +1-555-0100 50% $9.99 €5",
    "½ ²³ ⅠⅣ ١٢٣ １２３ ①",
    "def f(x: int) -> str:\n    return f'{x!r:>8}'  # x != y && z\n\n\nif __name__ == \"__main__\":\n\tpass",
    '<html><body class="a">&amp; &lt;tag/&gt;</body></html> {"key": [1, null, true]} https://example.org/a?b=c#d',
    "$\\int_0^1 x^2\\,dx = \\frac{1}{3}$ a_b^c ~~strike~~ **bold** `code` - [ ] item",
    "café cafe\u0301 naïve Ångström straße İstanbul ı ﬁne Ǆ ẞ Å",
    "Привет, мир! Єїґ Ελληνικά ςσ Հայ",
    "مرحبا بالعالم שלום עולם فارسی",
    "नमस्ते दुनिया বাংলা தமிழ் สวัสดี မြန်မာ",
    "你好，世界。繁體中文 こんにちは世界 カタカナ ｶﾅ 안녕하세요 한",
    "😀 👩\u200d👩\u200d👧 🇫🇷 👍\U0001f3fd ❤\ufe0f ☺ 𠀀 𝕏",
    "zero\u200bwidth\u200d\ufeffmark \u00adsoft \u202eright \u0007bell \u0000nul \x1b[31m �",
    "<s> </s> <pad> <unk> [CLS] [SEP] [MASK] [UNK] <|endoftext|> <|im_start|>user\nhi<|im_end|> <bos> <eos> <mask>",
    "▁under ĠG Ċ ##piece @@bpe </w> <0x0A> ▁",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ---------------- ................ ================",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft antidisestablishmentarianism",
)
