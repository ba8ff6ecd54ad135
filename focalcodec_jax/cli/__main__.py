"""`python -m focalcodec_jax.cli`, the same as `focalcodec-jax`."""

from focalcodec_jax.cli import main

if __name__ == "__main__":
    main()
