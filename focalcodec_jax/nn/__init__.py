"""The model, as pure functions and Flax modules: its layers, its parts and the whole codec."""
