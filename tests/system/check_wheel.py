"""Run in a clean environment that holds the built wheel and nothing else, outside the repository."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import focalcodec_jax
import focalcodec_jax.configs
import focalcodec_jax.convert.mapping
import focalcodec_jax.train

site = Path(focalcodec_jax.__file__).parent.parent
assert site.name == "site-packages", site
for name in ("train", "convert", "configs", "tests"):
    assert importlib.util.find_spec(name) is None, f"{name} was installed as a top-level package"
    assert not (site / name).exists(), f"{site / name} was installed"
for name in ("train", "convert", "configs"):
    assert (site / "focalcodec_jax" / name).is_dir()
    assert not (site / "focalcodec_jax" / name).is_symlink()
assert (site / "focalcodec_jax/py.typed").is_file()

assert (site / "focalcodec_jax/configs/smoke.yaml").is_file()
command = [Path(sys.executable).parent / "focalcodec-jax", "train", "run", "smoke", "--dry-run"]
said = subprocess.run(command, capture_output=True, text=True, check=False)
assert said.returncode == 2, said
assert 'pip install "focalcodec-jax[train]"' in said.stderr, said

codec = focalcodec_jax.Codec.from_pretrained()
sig = focalcodec_jax.audio.read(focalcodec_jax.pretrained.SAMPLE)
(toks,) = codec.encode(sig, 16000)
(sound,) = codec.decode(toks)
assert len(toks) == 354
assert len(sound) == 354 * 320
print(f"wheel: {focalcodec_jax.__version__} in {site}")
