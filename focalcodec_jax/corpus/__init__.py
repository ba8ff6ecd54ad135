"""Corpora of speech: finding recordings, and turning all of them into tokens and back."""
