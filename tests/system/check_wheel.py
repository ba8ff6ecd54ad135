"""Checks an installed wheel: `python check_wheel.py SOURCE`, where SOURCE is the folder that the wheel was built from.

CI runs this outside the repository, in an environment that holds the wheel and its plain dependencies only.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import focalcodec_jax
from focalcodec_jax.files import SAMPLE_RECORDING
from focalcodec_jax.recordings import audio

source, site = Path(sys.argv[1]), Path(focalcodec_jax.__file__).parent.parent
assert site.name == "site-packages", site

for name in ("train", "convert", "configs", "tests"):
    assert importlib.util.find_spec(name) is None, f"{name} was installed as a top-level package"
    assert not (site / name).exists(), f"{site / name} was installed"

folders = {"focalcodec_jax": source / "focalcodec_jax"}
folders |= {f"focalcodec_jax/{name}": source / name for name in ("train", "convert", "configs")}
for package, folder in folders.items():
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert files, folder
    missing = [str(path) for path in files if not (site / package / path.relative_to(folder)).is_file()]
    assert not missing, f"the wheel lacks {missing}"

command = [Path(sys.executable).parent / "focalcodec-jax", "train", "run", "smoke", "--dry-run"]
result = subprocess.run(command, capture_output=True, text=True, check=False)
assert result.returncode == 2, result
assert 'pip install "focalcodec-jax[train]"' in result.stderr, result

codec = focalcodec_jax.Codec.from_pretrained()
(toks,) = codec.encode(audio.read(SAMPLE_RECORDING), 16000)
(decoded,) = codec.decode(toks)
assert len(toks) == 354
assert len(decoded) == 354 * 320
print(f"wheel: {focalcodec_jax.__version__} in {site}")
