"""Speech tokens as text, for language models whose tokenizers read text; and back, exactly.

Two styles. `special` writes a code as `<|s_0042|>`; `private` as one character of Unicode's private planes 15 and 16,
so that a text has as many characters as tokens. Either way the tokenizer must be given the strings, after which each
is one token; they follow its vocabulary in order, so that code k is token `offset + k`, for `packed_sequences`:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from focalcodec_jax.tokens.text import special_tokens, text_to_tokens, tokens_to_text

tokenizer = AutoTokenizer.from_pretrained("gpt2")
tokenizer.add_tokens(special_tokens(8192))
offset = tokenizer.convert_tokens_to_ids(special_tokens(8192)[0])
model = AutoModelForCausalLM.from_pretrained("gpt2")
model.resize_token_embeddings(len(tokenizer))
prompt = tokenizer("Say again: " + tokens_to_text(toks, 8192), return_tensors="pt")
said = model.generate(**prompt, max_new_tokens=500)[0, prompt["input_ids"].shape[1] :]
toks = text_to_tokens(tokenizer.decode(said), 8192, skip_other=True)
```

What a private character costs a tokenizer that was not given it: with byte-level BPE up to four tokens, its bytes in
UTF-8. Others have one token for all unknown characters, and BERT's normaliser removes them: what was said is then lost.
"""

import re
from functools import lru_cache

import numpy as np

from focalcodec_jax.errors import TokenError

PRIVATE = np.concatenate([np.arange(0xF0000, 0xFFFFE), np.arange(0x100000, 0x10FFFE)])
"""Code points of planes 15 and 16 less the last two of each, which are no characters. Plane 0 has too few, 6,400."""

PATTERNS = {"special": r"<\|s_[0-9]+\|>", "private": "[\U000f0000-\U000ffffd\U00100000-\U0010fffd]"}
"""What looks like a speech token, by style."""


def special_tokens(codebook_size: int, style: str = "special") -> list[str]:
    """The strings to add to a tokenizer: one for each code, in order.

    Raises:
        TokenError: no such style, or it has too few strings for the codebook.
    """
    if style not in PATTERNS:
        raise TokenError(f"there is no style {style!r} of speech tokens: {' or '.join(PATTERNS)}")
    if codebook_size < 1:
        raise TokenError(f"a codebook of {codebook_size} codes has no tokens")
    if style == "special":
        digits = max(4, len(str(codebook_size - 1)))
        return [f"<|s_{code:0{digits}}|>" for code in range(codebook_size)]
    if codebook_size > len(PRIVATE):
        raise TokenError(
            f"a codebook of {codebook_size} codes exceeds the {len(PRIVATE)} private characters; use style special"
        )
    return list(map(chr, PRIVATE[:codebook_size].tolist()))


@lru_cache(maxsize=8)
def _codes(codebook_size: int, style: str) -> dict[str, int]:
    return {string: code for code, string in enumerate(special_tokens(codebook_size, style))}


def tokens_to_text(toks: np.ndarray, codebook_size: int, style: str = "special") -> str:
    """Write tokens as text, with nothing between them.

    Args:
        toks: (tokens,) integers.

    Raises:
        TokenError: not such an array, a token outside the codebook, or as `special_tokens`.
    """
    strings = list(_codes(codebook_size, style))
    toks = np.asarray(toks)
    if toks.ndim != 1 or (toks.size and not np.issubdtype(toks.dtype, np.integer)):
        raise TokenError(f"give tokens as integers of shape (tokens,), not {toks.dtype} of shape {toks.shape}")
    outside = np.flatnonzero((toks < 0) | (toks >= codebook_size))
    if outside.size:
        first = outside[0]
        raise TokenError(f"token {toks[first]} at position {first}; this codebook is 0 to {codebook_size - 1}")
    return "".join(map(strings.__getitem__, toks.tolist()))


def text_to_tokens(text: str, codebook_size: int, style: str = "special", *, skip_other: bool = False) -> np.ndarray:
    """Read the tokens of a text: the inverse of `tokens_to_text`, (tokens,) int32.

    Args:
        skip_other: take the speech tokens and pass over words, spaces and other tokens; otherwise they are errors.
            A speech token of another codebook is an error always.

    Raises:
        TokenError: says which part of the text is no token, and where; or as `special_tokens`.
    """
    codes = _codes(codebook_size, style)
    found = re.findall(PATTERNS[style], text)
    if not skip_other and sum(map(len, found)) != len(text):
        end = 0
        for match in re.finditer(PATTERNS[style], text):
            if match.start() != end:
                break
            end = match.end()
        raise TokenError(
            f"character {end} begins {text[end : end + 24]!r}, which is no speech token of style {style}; "
            "skip_other=True takes only those"
        )
    try:
        return np.fromiter((codes[string] for string in found), np.int32, len(found))
    except KeyError as error:
        wrong = next(match for match in re.finditer(PATTERNS[style], text) if match[0] not in codes)
        own = list(codes)
        raise TokenError(
            f"{wrong[0]!r} at character {wrong.start()} is not of this codebook, which is {own[0]!r} to {own[-1]!r}"
        ) from error
