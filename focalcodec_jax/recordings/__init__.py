"""Finding and reading recordings, without JAX, so that processes that only read audio start at once."""
