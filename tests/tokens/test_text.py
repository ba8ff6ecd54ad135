"""Tokens as text and back, without loss."""

import numpy as np
import pytest

from focalcodec_jax.errors import TokenError
from focalcodec_jax.tokens.text import special_tokens, text_to_tokens, tokens_to_text

STYLES = ("special", "private")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("codebook_size", [1, 2**11, 2**13, 2**16])
def test_every_code_comes_back(codebook_size: int, style: str):
    toks = np.random.default_rng(0).permutation(codebook_size).astype(np.uint16)
    text = tokens_to_text(toks, codebook_size, style)
    back = text_to_tokens(text, codebook_size, style)
    assert back.dtype == np.int32
    np.testing.assert_array_equal(back, toks)
    assert tokens_to_text(back, codebook_size, style) == text
    strings = special_tokens(codebook_size, style)
    assert len(set(strings)) == codebook_size
    assert text == "".join(strings[tok] for tok in toks)


def test_how_they_look():
    assert tokens_to_text(np.array([0, 42, 8191]), 8192) == "<|s_0000|><|s_0042|><|s_8191|>"
    assert special_tokens(65536)[-1] == "<|s_65535|>"
    private = special_tokens(65536, "private")
    assert [private[0], private[65533], private[65534]] == ["\U000f0000", "\U000ffffd", "\U00100000"]
    assert len(special_tokens(131068, "private")) == 131068


@pytest.mark.parametrize("style", STYLES)
def test_nothing_is_a_text_too(style: str):
    assert tokens_to_text(np.zeros(0, np.int32), 8192, style) == ""
    assert text_to_tokens("", 8192, style).shape == (0,)


@pytest.mark.parametrize("style", STYLES)
def test_other_text(style: str):
    toks = np.array([1, 8191, 0])
    one, two, three = (tokens_to_text(toks[i : i + 1], 8192, style) for i in range(3))
    text = f"He said: {one} {two}</s>\n{three} s_0001 \ud800"
    np.testing.assert_array_equal(text_to_tokens(text, 8192, style, skip_other=True), toks)
    with pytest.raises(TokenError, match="character 0 begins 'He said"):
        text_to_tokens(text, 8192, style)
    with pytest.raises(TokenError, match=rf"character {len(one + two)} begins ' and'.*skip_other=True"):
        text_to_tokens(one + two + " and", 8192, style)


@pytest.mark.parametrize("skip_other", [False, True])
@pytest.mark.parametrize(
    ("text", "style", "match"),
    [
        ("<|s_0001|><|s_9000|>", "special", r"'<\|s_9000\|>' at character 10 .* '<\|s_0000\|>' to '<\|s_8191\|>'"),
        ("<|s_00001|>", "special", r"'<\|s_00001\|>' at character 0"),
        ("\U000f0000\U000f2000", "private", r"'\\U000f2000' at character 1 .* to '\\U000f1fff'"),
    ],
)
def test_tokens_of_another_codebook(text: str, style: str, match: str, skip_other: bool):
    with pytest.raises(TokenError, match=match):
        text_to_tokens(text, 8192, style, skip_other=skip_other)


@pytest.mark.parametrize("text", ["<|s_٠٠٠١|>", "<|s_0001", "\U000ffffe", "\ue000"])
@pytest.mark.parametrize("style", STYLES)
def test_what_only_looks_like_tokens(text: str, style: str):
    with pytest.raises(TokenError, match="character 0 begins"):
        text_to_tokens(text, 8192, style)
    assert text_to_tokens(text, 8192, style, skip_other=True).size == 0


def test_bad_tokens():
    with pytest.raises(TokenError, match="token 8192 at position 1; this codebook is 0 to 8191"):
        tokens_to_text(np.array([0, 8192]), 8192)
    with pytest.raises(TokenError, match="token -1 at position 0"):
        tokens_to_text(np.array([-1]), 8192)
    with pytest.raises(TokenError, match="not float64 of shape"):
        tokens_to_text(np.array([0.5]), 8192)
    with pytest.raises(TokenError, match=r"not int64 of shape \(1, 2\)"):
        tokens_to_text(np.array([[0, 1]]), 8192)
    with pytest.raises(TokenError, match="'words' is not a style of speech tokens; styles are special and private"):
        special_tokens(8192, "words")
    with pytest.raises(TokenError, match="exceeds the 131068 private characters"):
        special_tokens(131069, "private")
    with pytest.raises(TokenError, match="a codebook has at least one code, not 0"):
        special_tokens(0)


@pytest.mark.live
@pytest.mark.parametrize("style", STYLES)
def test_tokenizers_take_them(style: str):
    """The example in the docstring of the module, with a new tokenizer."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    byte_level = Tokenizer(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    byte_level.train_from_iterator(["say it again, and again"], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level)

    toks = np.random.default_rng(0).integers(0, 8192, 500)
    text = tokens_to_text(toks, 8192, style)
    if style == "private":
        assert len(tokenizer(text)["input_ids"]) == 4 * len(toks)

    vocabulary = len(tokenizer)
    assert tokenizer.add_tokens(special_tokens(8192, style)) == 8192
    offset = tokenizer.convert_tokens_to_ids(special_tokens(8192, style)[0])
    assert offset == vocabulary
    ids = np.array(tokenizer("say again: " + text + " again")["input_ids"])
    np.testing.assert_array_equal(ids[ids >= offset] - offset, toks)
    output = tokenizer.decode(ids)
    assert output == "say again: " + text + " again"
    np.testing.assert_array_equal(text_to_tokens(output, 8192, style, skip_other=True), toks)
