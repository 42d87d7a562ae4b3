#!/bin/sh
# Make the venv of a peer that comes as one wheel: wheel_env.sh PYTHON TARGET PEER WHEEL (e.g. ... lmcache lmcache==0.5.6).
# Only the peer's file tier is wanted, so the wheel comes without its dependencies; PEER_env/requirements.txt pins what
# its imports ask for. A CPU build of torch is enough; PIP_EXTRA_INDEX_URL may name an index with CPU builds.
set -eu
[ $# -eq 4 ] || { echo "usage: $0 PYTHON TARGET PEER WHEEL" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
"$1" -m venv "$2"
target=$(cd "$2" && pwd)
pip() { "$target/bin/python" -m pip --quiet --disable-pip-version-check install "$@"; }
pip torch==2.13.0 # first and alone, so that no dependency chooses another build
pip --no-deps "$4"
pip --requirement "$here/$3_env/requirements.txt"

packages=$(mktemp -d) # neither package is installed there: workers get them through PYTHONPATH
trap 'rm -r "$packages"' EXIT
for package in harness kvtier; do ln -s "$(cd "$here/../../$package" && pwd)" "$packages/$package"; done
PYTHONPATH=$packages "$target/bin/python" -P -c "from harness.adapters.$3 import import_peer; import_peer()"
echo "$target/bin/python drives the file tier of $4"
