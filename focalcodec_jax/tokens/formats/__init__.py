"""Formats of token data sets. To add a format, write a module with a `TokenFormat` and list it in `FORMATS`."""

from focalcodec_jax.errors import ConfigError
from focalcodec_jax.tokens.formats import array_record, jsonl, npy, parquet
from focalcodec_jax.tokens.formats.base import TokenFormat

FORMATS: dict[str, TokenFormat] = {
    found.name: found for found in (parquet.PARQUET, array_record.ARRAY_RECORD, jsonl.JSONL, npy.NPY)
}


def find_format(name: str) -> TokenFormat:
    """Find a format by its name.

    Raises:
        ConfigError: no format has this name.
    """
    if name not in FORMATS:
        raise ConfigError(f"{name!r} is not a format of tokens; formats are {', '.join(FORMATS)}", parameter="format")
    return FORMATS[name]
