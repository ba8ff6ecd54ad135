"""Runs `focalcodec-jax train` as `python -m focalcodec_jax.train`."""

from focalcodec_jax.cli import main
from focalcodec_jax.cli.train import app

if __name__ == "__main__":
    main(app)
