"""FocalCodec in JAX: a speech codec with a single codebook, at 0.16 to 0.80 kbps."""

from typing import TYPE_CHECKING

from focalcodec_jax.config import CodecConfig
from focalcodec_jax.errors import AudioError, CheckpointError, ConfigError, FocalCodecError, TokenError
from focalcodec_jax.lazy import lazy_names
from focalcodec_jax.version import __version__

if TYPE_CHECKING:
    from focalcodec_jax.inference import Codec
    from focalcodec_jax.nn.codec import FocalCodec
    from focalcodec_jax.pretrained import load_pretrained, save_pretrained

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

__getattr__ = lazy_names(
    __name__,
    {
        "Codec": "inference",
        "FocalCodec": "nn.codec",
        "load_pretrained": "pretrained",
        "save_pretrained": "pretrained",
    },
)
