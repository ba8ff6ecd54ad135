"""Weights from PyTorch checkpoints, and back."""
