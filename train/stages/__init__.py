"""Training stages. `STAGES` contains every `Stage` that a module of this package defines.

To add a stage, write one module here and one configuration in `configs/`. No other code depends on its name.
"""

from importlib import import_module
from pkgutil import iter_modules

from focalcodec_jax.errors import ConfigError

from .base import Batch, Leaf, Outcome, Stage, StageContext, merge_params


def find_stages() -> dict[str, Stage]:
    """Stages of all modules in this package, by name."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    stages: dict[str, Stage] = {}
    for stage in (value for module in modules for value in vars(module).values() if isinstance(value, Stage)):
        if stages.setdefault(stage.name, stage) is not stage:
            raise ConfigError(f"two training stages have the name {stage.name!r}")
    return dict(sorted(stages.items()))


STAGES = find_stages()
"""All stages by name, which is the value of the key `stage` of a configuration."""

__all__ = ["STAGES", "Batch", "Leaf", "Outcome", "Stage", "StageContext", "merge_params"]
