"""Runs the command as `python -m focalcodec_jax.cli`."""

from focalcodec_jax.cli import main

if __name__ == "__main__":
    main()
