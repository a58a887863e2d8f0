"""Tokenizers in GGUF metadata: what is written is read back to the same ids."""

from __future__ import annotations

import pytest

from athanor.base.errors import TokenizerError
from athanor.tokenizer import Tokenizer
from athanor.tokenizer.gguf import from_gguf
from athanor.tokenizer.gguf_writing import to_gguf

HARD = [
    "", " ", "  two  blanks ", "\n\n\n", "\r\n line\r\n\r\n\tend", "a\u00a0b\u3000c", "naïve café cafe\u0301",
    "12345 ½ ٣ 六",     "It's WE'LL they'RE 'tis I'M", "火和水，没有人知道。", "ไม่มีใครรู้ ကမ္ဘာ हिन्दी", "עברית العربية",
    "👨‍👩‍👧‍👦🏳️‍🌈 x🙂y",
    "한국어 日本語カタカナ",
    "for (int i=0;i<10;++i) {\n        x += 3.14e-5; // ok\n}\n", "<|im_start|>user\n<|im_end|> <s></s> <0x0A>",
    "\u200b\ufeff\x00\x07", "snake_case CamelCase HTTPServer XMLÄußerung", "$1,234.56 #!/usr/bin/env @x %&*()",
    "ﬁ Ⅷ ² ǅ", "▁x ▁",
]  # fmt: skip


def test_our_tokenizer_comes_back_from_gguf(tokenizer: Tokenizer, sentences: list[str]) -> None:
    metadata = to_gguf(tokenizer, vocab_size=tokenizer.vocab_size + 3)
    assert len(metadata["tokenizer.ggml.tokens"]) == tokenizer.vocab_size + 3
    back = from_gguf(metadata, "model.gguf")
    for text in [*HARD, *sentences[:20]]:
        assert back.encode(text) == tokenizer.encode(text)
    messages = [{"role": "user", "content": "Hello 火"}]
    ours = tokenizer.control
    assert back.conversation(messages, None, True)[0] == ours["<|im_start|>"]
    assert back.stop_ids == tokenizer.stop_ids
    with pytest.raises(TokenizerError, match="the model only 4"):
        to_gguf(tokenizer, vocab_size=4)
