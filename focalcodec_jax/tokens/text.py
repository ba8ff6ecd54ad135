"""Convert speech tokens to text and back without loss, for language models whose tokenizers read text.

The style `special` writes code 42 as `<|s_0042|>`. The style `private` writes each code as one character of the Unicode
private use planes 15 and 16, so that a text has as many characters as tokens. In both styles, the strings must be added
to the tokenizer, which then reads each of them as one token. The new tokens follow its vocabulary in order. Code k
becomes token `offset + k`, as in `packed_sequences`.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from focalcodec_jax import special_tokens, text_to_tokens, tokens_to_text

tokenizer = AutoTokenizer.from_pretrained("gpt2")
tokenizer.add_tokens(special_tokens(8192))
offset = tokenizer.convert_tokens_to_ids(special_tokens(8192)[0])
model = AutoModelForCausalLM.from_pretrained("gpt2")
model.resize_token_embeddings(len(tokenizer))
prompt = tokenizer("Say again: " + tokens_to_text(toks, 8192), return_tensors="pt")
output = model.generate(**prompt, max_new_tokens=500)[0, prompt["input_ids"].shape[1] :]
toks = text_to_tokens(tokenizer.decode(output), 8192, skip_other=True)
```

A tokenizer without these strings treats private characters as follows. Byte-level BPE uses up to four tokens for each
character, which are its bytes in UTF-8. Other tokenizers map all of them to one unknown token, and the normalizer of
BERT removes them. In these two cases, the speech is lost.
"""

import re
from functools import lru_cache

import numpy as np

from focalcodec_jax.errors import TokenError

PRIVATE = np.concatenate([np.arange(0xF0000, 0xFFFFE), np.arange(0x100000, 0x10FFFE)])
"""Code points of planes 15 and 16. The last two of each plane are not characters, and are left out.

The private area of plane 0 is too small: it has 6,400 code points.
"""

PATTERNS = {"special": r"<\|s_[0-9]+\|>", "private": "[\U000f0000-\U000ffffd\U00100000-\U0010fffd]"}
"""Regular expression of a speech token in each style."""


def special_tokens(codebook_size: int, style: str = "special") -> list[str]:
    """The strings to add to a tokenizer, one for each code in order.

    Args:
        codebook_size: number of codes.
        style: "special" or "private".

    Raises:
        TokenError: the style is unknown, or the codebook has no codes, or more codes than the style has strings.
    """
    if style not in PATTERNS:
        raise TokenError(
            f"{style!r} is not a style of speech tokens; styles are {' and '.join(PATTERNS)}", parameter="style"
        )
    if codebook_size < 1:
        raise TokenError(f"a codebook has at least one code, not {codebook_size}")
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
    """Write tokens as text, without separators.

    Args:
        toks: (tokens,) integers.
        codebook_size, style: as in `special_tokens`.

    Raises:
        TokenError: `toks` is not such an array, or has a token outside the codebook. Also as in `special_tokens`.
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
    """Read the speech tokens in a text. This is the inverse of `tokens_to_text`.

    Args:
        text: text with speech tokens.
        codebook_size, style: as in `special_tokens`.
        skip_other: whether to skip all text between the speech tokens, instead of raising an error.

    Returns:
        (tokens,) int32.

    Raises:
        TokenError: the text contains other text and `skip_other` is not set, or it contains a speech token outside the
            codebook. Also as in `special_tokens`.
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
            f"character {end} begins {text[end : end + 24]!r}, which is not a speech token of style {style}; "
            "skip_other=True skips all other text"
        )
    try:
        return np.fromiter((codes[string] for string in found), np.int32, len(found))
    except KeyError as error:
        wrong = next(match for match in re.finditer(PATTERNS[style], text) if match[0] not in codes)
        own = list(codes)
        raise TokenError(
            f"{wrong[0]!r} at character {wrong.start()} is outside this codebook, {own[0]!r} to {own[-1]!r}"
        ) from error
