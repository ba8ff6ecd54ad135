"""Training of codecs: `load_config`, `run`, `prepare`, `draw_curves`, `codec_from_runs` and `dry_run`."""

from typing import TYPE_CHECKING, Any

from focalcodec_jax.errors import require
from focalcodec_jax.lazy import lazy_names

if TYPE_CHECKING:
    from .curves import draw_curves
    from .footprint import Footprint, dry_run
    from .from_runs import FromRunsReport, codec_from_runs
    from .loop import RunReport, run
    from .progress import PrepareProgress, RunMessage, StepProgress, ValidationProgress
    from .run_config import TrainConfig, load_config
    from .shards import PrepareOptions, PrepareReport, prepare

__all__ = [
    "Footprint",
    "FromRunsReport",
    "PrepareOptions",
    "PrepareProgress",
    "PrepareReport",
    "RunMessage",
    "RunReport",
    "StepProgress",
    "TrainConfig",
    "ValidationProgress",
    "codec_from_runs",
    "draw_curves",
    "dry_run",
    "load_config",
    "prepare",
    "run",
]

_find = lazy_names(
    __name__,
    {
        "Footprint": "footprint",
        "FromRunsReport": "from_runs",
        "PrepareOptions": "shards",
        "PrepareProgress": "progress",
        "PrepareReport": "shards",
        "RunMessage": "progress",
        "RunReport": "loop",
        "StepProgress": "progress",
        "TrainConfig": "run_config",
        "ValidationProgress": "progress",
        "codec_from_runs": "from_runs",
        "draw_curves": "curves",
        "dry_run": "footprint",
        "load_config": "run_config",
        "prepare": "shards",
        "run": "loop",
    },
)


def __getattr__(name: str) -> Any:
    # Checked here, because these modules import optional packages at their top.
    if name in __all__:
        require("training", "train", "array_record", "grain", "librosa", "optax", "orbax", "yaml")
    return _find(name)
