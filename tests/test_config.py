"""Configurations: official files, hashing, and errors that list all problems."""

import json

import jax
import pytest
from support.golden import CODECS, GOLDEN

from focalcodec_jax import CodecConfig, ConfigError, FocalCodec
from focalcodec_jax.config import PRESETS


@pytest.mark.parametrize("name", CODECS)
def test_json_both_ways(name: str):
    config = CodecConfig.from_json(GOLDEN / name / "config.json")
    assert CodecConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    official = json.loads((GOLDEN / name / "config.json").read_text())
    for part in ("encoder", "compressor", "quantizer", "decompressor", "decoder"):
        ours = config.to_dict()[f"{part}_config"]
        known = {key: value for key, value in official[f"{part}_config"].items() if key in ours}
        renamed = {"input_channels", "padding"}
        assert official[f"{part}_config"].keys() - known.keys() <= renamed
        assert known.items() <= json.loads(json.dumps(ours)).items()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hash_and_serve_as_static_arguments(name: str):
    config = PRESETS[name]
    assert hash(config) == hash(CodecConfig.from_dict(config.to_dict()))
    assert hash(FocalCodec(config)) == hash(FocalCodec(CodecConfig.preset(f"lucadellalib/{name}")))
    jax.jit(lambda x, config: x * config.encoder.dim, static_argnums=1)(1, config)


def test_missing_keys_take_the_defaults():
    config = CodecConfig.from_dict({})
    assert config.decoder.hop_length == 480
    assert (config.encoder.window_size, config.encoder.lookahead_size, config.encoder.causal) == (512, 3, False)


def test_one_error_lists_all_problems():
    with pytest.raises(ConfigError) as caught:
        CodecConfig.from_dict(
            {
                "name": "x",
                "encoder_config": {"dim": 0, "kernels": [3], "hidden_dims": [16, "wide"]},
                "compressor_config": {"downscale_factors": [1, 2]},
                "quantizer_name": "VQ",
                "decoder_config": {"n_fft": 512},
            }
        )
    for problem in (
        "unknown key 'name'",
        "encoder_config: dim: Input should be greater than 0, got 0",
        "encoder_config: unknown key kernels",
        "encoder_config: hidden_dims.1: Input should be a valid integer",
        "compressor_config: 2 scale factors for 3 hidden_dims",
        "quantizer_name is 'VQ', this package supports BinarySphericalQuantizer",
        "decoder_config: unknown key n_fft",
    ):
        assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizer_config": {"codebook_size": 1000}}, "codebook_size must be a power of two, got 1000"),
        ({"encoder_config": {"strides": [5, 2]}}, "one entry per layer"),
        ({"encoder_config": {"num_heads": 7}}, "dim 1024 must be divisible by num_heads"),
        ({"decoder_name": "Vocos", "decoder_config": {"n_fft": 321}}, "must be hop_length 320 plus an even number"),
        ({"encoder_config": {"dim": 512}}, "encoder.dim = compressor.input_dim does not hold: 512 and 1024"),
    ],
)
def test_impossible_values(changes: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        CodecConfig.from_dict(changes)
