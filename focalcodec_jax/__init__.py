"""FocalCodec in JAX: speech to single-codebook tokens at 0.16–0.80 kbps, and back."""

from focalcodec_jax.codec import FocalCodec
from focalcodec_jax.config import CodecConfig
from focalcodec_jax.errors import AudioError, CheckpointError, ConfigError, FocalCodecError, TokenError
from focalcodec_jax.inference import Codec
from focalcodec_jax.pretrained import load_pretrained, save_pretrained
from focalcodec_jax.version import __version__

__all__ = [
    "AudioError",
    "CheckpointError",
    "Codec",
    "CodecConfig",
    "ConfigError",
    "FocalCodec",
    "FocalCodecError",
    "TokenError",
    "__version__",
    "load_pretrained",
    "save_pretrained",
]
