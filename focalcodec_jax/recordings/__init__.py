"""Find and read recordings. This package does not import JAX, so that processes that read audio start fast."""
