"""Convert corpora of speech to data sets of tokens, and back to audio."""
