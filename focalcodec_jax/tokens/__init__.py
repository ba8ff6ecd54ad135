"""Token sequences in files, in data sets and as text, and packing for language models. It does not import JAX."""
