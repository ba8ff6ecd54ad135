"""`python -m focalcodec_jax.train run …`, the same as `focalcodec-jax train run …`."""

from focalcodec_jax.cli import main
from focalcodec_jax.cli.train import app

if __name__ == "__main__":
    main(app)
