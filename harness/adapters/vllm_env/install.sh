#!/bin/sh
# Make the venv in which the vllm adapter's workers run: install.sh PYTHON TARGET (e.g. python3.12 .venv-vllm).
# `make install-vllm` and `kvtier-harness install-peer vllm` run it.
# Only vLLM's tier and hashing are wanted, so vllm comes without its dependencies. A CPU build of torch is enough;
# where the default index has only CUDA builds (gigabytes), PIP_EXTRA_INDEX_URL may name one with CPU builds.
# Needs a C compiler ($CC, cc) where torch is a CPU build.
set -eu
[ $# -eq 2 ] || { echo "usage: $0 PYTHON TARGET" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
"$1" -m venv "$2"
target=$(cd "$2" && pwd)
pip() { "$target/bin/python" -m pip --quiet --disable-pip-version-check install "$@"; }
pip torch==2.13.0 # first and alone, so that no dependency chooses another build
pip --no-deps "${VLLM:-vllm==0.33.0}"
pip --requirement "$here/requirements.txt"

# vllm.fs_io_C is linked against three CUDA libraries and calls none of them. Where torch brought no CUDA, empty
# libraries with their names let it load; the adapter opens them before it imports vllm.
stubs="$target/lib/vllm-stubs"
mkdir -p "$stubs"
if "$target/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
    command -v "${CC:-cc}" >/dev/null || { echo "install.sh: no C compiler (${CC:-cc}); on Debian: apt-get install gcc" >&2; exit 1; }
    for library in libtorch_cuda.so libc10_cuda.so libnvrtc.so.13; do
        "${CC:-cc}" -shared -x c /dev/null "-Wl,-soname,$library" -o "$stubs/$library"
    done
fi
packages=$(mktemp -d) # neither package is installed there: workers get them through PYTHONPATH
trap 'rm -r "$packages"' EXIT
for package in harness kvtier; do ln -s "$(cd "$here/../../../$package" && pwd)" "$packages/$package"; done
PYTHONPATH=$packages "$target/bin/python" -P -c 'from harness.adapters.vllm import import_vllm; import_vllm(c_extension=True)'
echo "$target/bin/python drives vLLM 0.33.0's tier"
