"""Import weights of PyTorch checkpoints, and compare two checkpoints."""

from typing import TYPE_CHECKING

from focalcodec_jax.lazy import lazy_names

if TYPE_CHECKING:
    from .importing import ImportedCheckpoint, import_checkpoint
    from .verifying import ParityReport, StageParity, verify

__all__ = ["ImportedCheckpoint", "ParityReport", "StageParity", "import_checkpoint", "verify"]

__getattr__ = lazy_names(
    __name__,
    {
        "ImportedCheckpoint": "importing",
        "ParityReport": "verifying",
        "StageParity": "verifying",
        "import_checkpoint": "importing",
        "verify": "verifying",
    },
)
