"""How tests compile. Imports no JAX, so that it can be read before JAX starts."""

from importlib.metadata import version

UNOPTIMISED_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""XLA_FLAGS that shorten compilation."""
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
"""Compiler options of one program that prevail over these flags. All values are XLA's defaults."""

if version("jaxlib").startswith("0.10."):  # Later versions do not know the flag, and refuse to start with it.
    UNOPTIMISED_FLAGS += " --xla_cpu_use_fusion_emitters=false"
    OPTIMISED |= {"xla_cpu_use_fusion_emitters": True}
