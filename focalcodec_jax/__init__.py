"""FocalCodec in JAX: speech to single-codebook tokens at 0.16–0.80 kbps, and back."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from focalcodec_jax.config import CodecConfig
from focalcodec_jax.errors import AudioError, CheckpointError, ConfigError, FocalCodecError, TokenError
from focalcodec_jax.version import __version__

if TYPE_CHECKING:
    from focalcodec_jax.codec import FocalCodec
    from focalcodec_jax.inference import Codec
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

_HOMES = {
    "Codec": "inference",
    "FocalCodec": "codec",
    "load_pretrained": "pretrained",
    "save_pretrained": "pretrained",
}


def __getattr__(name: str) -> Any:
    """What needs JAX is imported when it is asked for: processes that only read audio do without, and start at once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
