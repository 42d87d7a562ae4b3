#!/usr/bin/env bash
# The GPU copy of today beside its candidates, in ten minutes on a node with one CUDA device. Never run on one yet.
# usage, at the repository root: [PYTHON=python3] [OUT=runs/gpu] tests/tiering/benchmarks/gpu/run.sh
# Needs torch; with pytest and hypothesis the tests run too. Exit code: 0 all measured, all bytes right; 1 wrong bytes
# or a failed test; 2 something is unmeasured, with the reason; 64 a bad PYTHON or OUT. $OUT/summary.md is for pasting.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../../.." && pwd)
PYTHON=${PYTHON:-python3}
OUT=${OUT:-runs/gpu}

stop() { # stop CODE SENTENCE
  echo "bench-gpu-compare: $2" >&2
  exit "$1"
}

command -v "$PYTHON" >/dev/null || stop 64 "PYTHON is $PYTHON, which cannot be run; name a Python with torch"
PYTHON=$(command -v "$PYTHON")
case $PYTHON in /*) ;; *) PYTHON=$PWD/$PYTHON ;; esac
"$PYTHON" - <<'PROBE' || exit $?
import sys

try:
    import torch
except ImportError as error:
    reason = f"torch cannot be imported by {sys.executable} ({error})"
else:
    if torch.cuda.is_available():
        sys.exit(0)
    reason = f"no CUDA device that torch {torch.__version__} can use on this machine"
print(f"bench-gpu-compare: {reason}: the GPU path stays unmeasured", file=sys.stderr)
sys.exit(2)
PROBE

mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || stop 64 "OUT is $OUT, which cannot be made; name a folder that can"
rm -f "$OUT"/{log.txt,summary.md,compare.jsonl,today.jsonl}
copy=$(mktemp -d) || stop 2 "no temporary folder can be made: the GPU path stays unmeasured"
trap 'rm -rf "$copy"' EXIT
cp -r "$root/kvtier" "$root/tests" "$root/pyproject.toml" "$copy" || stop 2 "no copy in $copy: the GPU path stays unmeasured"
if command -v patch >/dev/null; then apply=(patch -s -p1 -i); else apply=(git apply); fi
(cd "$copy" && "${apply[@]}" "$here/candidate.patch") ||
  stop 2 "candidate.patch does not apply to this kvtier (by ${apply[0]}): the candidates stay unmeasured"

export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
worst=0
note() { # note CODE: of two codes, 1 (wrong) outranks 2 (unknown)
  if [ "$1" -eq 1 ] || [ "$worst" -eq 0 ]; then worst=$1; fi
}
part() { # part NAME SECONDS_MAX COMMAND...: its output goes into the log, the last KEEP lines into the summary; FAIL is
  # the exit code that means wrong bytes or a failed test, any other but 0 means unmeasured
  local name=$1 limit=$2 started=$SECONDS code
  shift 2
  echo "== $name (at most $limit s)"
  timeout -k 5 "$limit" "$@" >"$copy/part.txt" 2>&1
  code=$?
  { echo "===== $name: exit code $code, $((SECONDS - started)) s"; cat "$copy/part.txt"; } >>"$OUT/log.txt"
  { echo; echo "## $name: exit code $code, $((SECONDS - started)) s"; echo; tail -n "${KEEP:-15}" "$copy/part.txt"; } >>"$OUT/summary.md"
  case $code in 0) ;; "${FAIL:-none}") note 1 ;; *) note 2 ;; esac
}

{
  nvidia-smi --query-gpu=name,driver_version,pcie.link.gen.max,pcie.link.width.max,memory.total --format=csv,noheader
  grep -m1 "model name" /proc/cpuinfo
  echo "$(nproc) CPUs, Linux $(uname -r)"
} >"$OUT/summary.md" 2>&1

cd "$copy" || exit 2
PYTHONPATH=$copy part "driver" 100 "$PYTHON" "$here/probe.py"
FAIL=3 PYTHONPATH=$copy KEEP=120 part "today's loop beside the candidates" 240 \
  "$PYTHON" "$here/compare.py" "$root/kvtier/cpu/gpu_worker.py" "$OUT/compare.jsonl"

if "$PYTHON" -c 'import hypothesis, pytest' 2>/dev/null; then
  # Options of pyproject.toml name plug-ins that such a node may lack; torch may warn of the device.
  pytest=("$PYTHON" -m pytest -o addopts= --import-mode=importlib -m gpu -q -rsfE --tb=short -W default -p no:cacheprovider)
  FAIL=1 part "tests of the candidate" 90 "${pytest[@]}" tests/tiering/kvtier/cpu/test_gpu_worker.py
  cd "$root" || exit 2
  FAIL=1 BENCH_GPU_OUT=$OUT/today.jsonl KEEP=40 part "today: the tests of make bench-gpu" 150 \
    "${pytest[@]}" tests/tiering/kvtier/cpu/test_gpu_worker.py tests/tiering/benchmarks/test_gpu.py
else
  printf '\nNo tests were run: pytest or hypothesis is not installed.\n' >>"$OUT/summary.md"
  note 2
fi
cat "$OUT/summary.md"
echo "== $SECONDS s; for pasting: $OUT/summary.md; everything: $OUT/log.txt; exit code $worst"
exit "$worst"
