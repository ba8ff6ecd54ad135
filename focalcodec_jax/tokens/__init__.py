"""Token sequences on disk and as text, and packing them for language models."""
