"""Turn corpora of speech into data sets of tokens, and back into audio."""
