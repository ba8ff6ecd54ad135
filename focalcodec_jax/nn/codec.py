"""FocalCodec as a Flax module, from speech to tokens and back. Each step can also be called by itself.

    sig ─ encoder ─ feats ─ compressor ─ lats ─ quantizer ─ toks | codes ─ decompressor ─ qfeats ─ decoder ─ sig

`lengths` is given in the unit of the method's input: samples, frames or tokens. With `lengths`, the result of each item
equals the result without padding. The values in the padding have no influence.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from focalcodec_jax.config import CodecConfig
from focalcodec_jax.nn import bsq, lengths as count
from focalcodec_jax.nn.decoder import Decoder
from focalcodec_jax.nn.focal import Compressor, Decompressor
from focalcodec_jax.nn.layers import Lengths, zero_padding
from focalcodec_jax.nn.wavlm import WavLM

Sig = Float[Array, "batch samples"]
Feats = Float[Array, "batch frames dim"]
Lats = Float[Array, "batch tokens bits"]
Codes = Float[Array, "batch tokens bits"]
Toks = Int[Array, "batch tokens"]


class FocalCodec(nn.Module):
    """The model. Call it as `model.apply(variables, x, method="sig_to_toks")`, or use `Codec` for lists of recordings.

    Names and shapes of the arrays:
        sig: (batch, samples) audio in [−1, 1]; input at 16 kHz, output at `config.sample_rate_out_hz`.
        feats, qfeats: (batch, frames, dim) features of the encoder, and features rebuilt from codes.
        lats, codes: (batch, tokens, bits) latents on the unit sphere, and their quantized values.
        toks: (batch, tokens) int32 tokens.

    Source: Della Libera et al., "FocalCodec" (2025) and "FocalCodec-Stream" (2025).
    """

    config: CodecConfig

    def setup(self):
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        self.encoder = WavLM(config.encoder, dtype)
        self.compressor = Compressor(config.compressor, dtype)
        self.decompressor = Decompressor(config.decompressor, dtype)
        self.decoder = Decoder(config.decoder, dtype)

    # --- elementary steps

    def sig_to_feats(self, sig: Sig, lengths: Lengths = None) -> Feats:
        """Features of audio at 16 kHz. `lengths` counts samples."""
        return self.encoder(sig, lengths)

    def feats_to_lats(self, feats: Feats, lengths: Lengths = None) -> Lats:
        """Latents of features. `lengths` counts frames."""
        return self.compressor(feats, lengths)

    def lats_to_toks(self, lats: Lats) -> Toks:
        """Tokens of latents."""
        return bsq.lats_to_toks(lats)

    def lats_to_codes(self, lats: Lats) -> Codes:
        """Codes of latents, without a gradient."""
        return bsq.lats_to_codes(lats)

    def toks_to_codes(self, toks: Toks) -> Codes:
        """Codes of tokens."""
        return bsq.toks_to_codes(toks, self.config.quantizer.code_dim)

    def codes_to_toks(self, codes: Codes) -> Toks:
        """Tokens of codes."""
        return bsq.codes_to_toks(codes)

    def codes_to_qfeats(self, codes: Codes, lengths: Lengths = None) -> Feats:
        """Features rebuilt from codes. `lengths` counts tokens."""
        return self.decompressor(codes, lengths)

    def feats_to_sig(self, feats: Feats, lengths: Lengths = None) -> Sig:
        """Audio decoded from features, at `config.sample_rate_out_hz`. `lengths` counts frames."""
        return self.decoder(feats, lengths)

    # --- compositions

    def sig_to_lats(self, sig: Sig, lengths: Lengths = None) -> Lats:
        """Latents of audio at 16 kHz. `lengths` counts samples."""
        frames = None if lengths is None else count.samples_to_frames(self.config, lengths)
        return self.feats_to_lats(self.sig_to_feats(sig, lengths), frames)

    def sig_to_toks(self, sig: Sig, lengths: Lengths = None) -> Toks:
        """Tokens of audio at 16 kHz. `lengths` counts samples."""
        return self.lats_to_toks(self.sig_to_lats(sig, lengths))

    def toks_to_qfeats(self, toks: Toks, lengths: Lengths = None) -> Feats:
        """Features rebuilt from tokens. `lengths` counts tokens."""
        return self.codes_to_qfeats(self.toks_to_codes(toks), lengths)

    def toks_to_sig(self, toks: Toks, lengths: Lengths = None) -> Sig:
        """Audio decoded from tokens, at `config.sample_rate_out_hz`. `lengths` counts tokens."""
        frames = None if lengths is None else count.tokens_to_frames(self.config, lengths)
        return self.feats_to_sig(self.toks_to_qfeats(toks, lengths), frames)

    def __call__(self, sig: Sig, lengths: Lengths = None) -> tuple[Toks, Codes, Float[Array, "batch samples_out"]]:
        """Encode and decode.

        Returns:
            toks: (batch, tokens).
            codes: (batch, tokens, bits), with the straight-through gradient.
            sig: (batch, samples_out), cut or padded with zeros to the duration of the input.
        """
        codes, toks = bsq.quantize(self.sig_to_lats(sig, lengths))
        tokens = None if lengths is None else count.samples_to_tokens(self.config, lengths)
        frames = None if tokens is None else count.tokens_to_frames(self.config, tokens)
        decoded = self.feats_to_sig(self.codes_to_qfeats(codes, tokens), frames)

        samples = count.samples_in_to_out(self.config, sig.shape[1])
        decoded = jnp.pad(decoded, ((0, 0), (0, max(0, samples - decoded.shape[1]))))[:, :samples]
        if lengths is not None:
            decoded = zero_padding(decoded[..., None], count.samples_in_to_out(self.config, lengths))[..., 0]
        return toks, codes, decoded


@partial(jax.jit, static_argnums=0)
def initialize(model: FocalCodec, key: jax.Array) -> Any:
    """Create randomly initialized variables. The function is compiled once per configuration."""
    return model.init(key, jnp.zeros((1, model.config.encoder.samples_per_frame)))
