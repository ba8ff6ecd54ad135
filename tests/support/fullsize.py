"""A WavLM with the shapes of WavLM-large."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from support.golden import GOLDEN


def write_wavlm(folder: Path) -> dict[str, np.ndarray]:
    """Write random weights in the shapes and layout of WavLM-large in transformers.

    To save memory, there are eight of the 24 layers, two more than a codec keeps.

    Returns:
        Arrays by name.
    """
    rng = np.random.default_rng(0)
    tiny = load_file(GOLDEN / "wavlm_hf/model.safetensors")
    full = {16: 512, 32: 1024, 64: 4096, 4: 16}  # sizes of WavLM-large by those of the tiny model

    def grown(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if "original0" in name:
            return (1, 1, 128)
        if "original1" in name:
            return (1024, 64, 128)
        if "gru_rel_pos_linear" in name:
            return (8, 64)[: len(shape)]
        if "conv_layers" in name and len(shape) == 3:
            return (512, 1 if shape[1] == 1 else 512, shape[2])
        return tuple(full.get(size, size) for size in shape)

    tensors = {}
    for name, tensor in tiny.items():
        for layer in range(8) if ".layers.2." in name else (0,):
            shape = grown(name, tensor.shape)
            tensors[name.replace(".layers.2.", f".layers.{layer}.")] = rng.normal(0, 0.02, shape).astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    sizes = {"conv_dim": [512] * 7, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    position = {"num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16, "num_hidden_layers": 8}
    config = json.loads((GOLDEN / "wavlm_hf/config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | sizes | position))
    return tensors
