"""Token sequences: files, data sets, text, and packing for language models. This package does not import JAX."""
