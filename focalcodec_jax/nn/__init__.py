"""The model: pure functions and Flax modules, from single layers to the whole codec."""
