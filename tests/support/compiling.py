"""How tests compile. Imports nothing, so that it can be read before JAX starts."""

UNOPTIMISED_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""XLA_FLAGS that halve the time to compile."""
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
"""Compiler options of one program that prevail over these flags. Both values are XLA's defaults."""
