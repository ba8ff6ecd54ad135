"""Exports of a codec that run without this package."""

from typing import TYPE_CHECKING

from focalcodec_jax.lazy import lazy_names

if TYPE_CHECKING:
    from focalcodec_jax.export.programs import ExportReport, stablehlo, write_programs

__all__ = ["ExportReport", "stablehlo", "write_programs"]

__getattr__ = lazy_names(__name__, {"ExportReport": "programs", "stablehlo": "programs", "write_programs": "programs"})
