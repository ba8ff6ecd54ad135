"""FocalCodec in JAX: a speech codec with a single codebook, at 0.16 to 0.80 kbps."""

from typing import TYPE_CHECKING

from focalcodec_jax.config import CodecConfig
from focalcodec_jax.errors import AudioError, CheckpointError, ConfigError, FocalCodecError, TokenError
from focalcodec_jax.lazy import lazy_names
from focalcodec_jax.version import __version__

if TYPE_CHECKING:
    from focalcodec_jax.corpus.detokenize import DetokenizeReport, detokenize
    from focalcodec_jax.corpus.options import DetokenizeOptions, TokenizeOptions
    from focalcodec_jax.corpus.tokenize import TokenizeReport, tokenize
    from focalcodec_jax.inference import Codec
    from focalcodec_jax.nn.codec import FocalCodec
    from focalcodec_jax.pretrained import load_pretrained, save_pretrained
    from focalcodec_jax.tokens.packing import packed_sequences
    from focalcodec_jax.tokens.text import special_tokens, text_to_tokens, tokens_to_text

__all__ = [
    "AudioError",
    "CheckpointError",
    "Codec",
    "CodecConfig",
    "ConfigError",
    "DetokenizeOptions",
    "DetokenizeReport",
    "FocalCodec",
    "FocalCodecError",
    "TokenError",
    "TokenizeOptions",
    "TokenizeReport",
    "__version__",
    "detokenize",
    "load_pretrained",
    "packed_sequences",
    "save_pretrained",
    "special_tokens",
    "text_to_tokens",
    "tokenize",
    "tokens_to_text",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Codec": "inference",
        "DetokenizeOptions": "corpus.options",
        "DetokenizeReport": "corpus.detokenize",
        "FocalCodec": "nn.codec",
        "TokenizeOptions": "corpus.options",
        "TokenizeReport": "corpus.tokenize",
        "detokenize": "corpus.detokenize",
        "load_pretrained": "pretrained",
        "packed_sequences": "tokens.packing",
        "save_pretrained": "pretrained",
        "special_tokens": "tokens.text",
        "text_to_tokens": "tokens.text",
        "tokenize": "corpus.tokenize",
        "tokens_to_text": "tokens.text",
    },
)
