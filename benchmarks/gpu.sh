#!/usr/bin/env bash
# Measures and tests on a CUDA machine, from a checkout, without a network and without installing.
#
#   bash benchmarks/gpu.sh [--quick] [--data=FOLDER] [--results=FOLDER] [PART ...] [-- TRAIN OPTIONS]
#
# Parts, each within ten minutes (all of them by default):
#   check   the test suite
#   small   Ti/16 and S/16 in bfloat16 beside linen and timm, and the host time of a step
#   large   B/16 at 224 px in bfloat16 beside timm under torch.compile: images/s and MFU
#   train   a short training: digits, or a small ViT on the images of --data (SPLIT/CLASS/*)
#
# --quick takes tiny sizes; it runs to its end on a CPU too. Results go to
# benchmarks/results/DATE-DEVICE.{json,md}, written anew after each run; a part run later that day
# adds to them. Compiled programs are kept in .jax_cache from one part to the next
# (JAX_COMPILATION_CACHE_DIR moves them). PYTHON names the interpreter, python3 by default.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
RESULTS=benchmarks/results
LIMIT=${LIMIT:-570}  # seconds of a part
quick="" data="" parts=() overrides=()
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=--quick ;;
    --data=*) data=${1#*=} ;;
    --results=*) RESULTS=${1#*=} ;;
    --) shift; overrides=("$@"); break ;;
    check|small|large|train) parts+=("$1") ;;
    *) sed -n '2,17s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
  shift
done
[ ${#parts[@]} -gt 0 ] || parts=(check small large train)

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$JAX_COMPILATION_CACHE_DIR/inductor}
device=$("$PYTHON" -c 'import jax; d = jax.devices()[0]; print(d.platform, d.device_kind)') || exit 1
platform=${device%% *}
slug=$(tr -cs '[:alnum:]\n' - <<<"${device#* }" | tr '[:upper:]' '[:lower:]')
name=$(date -u +%Y-%m-%d)-$slug${quick:+-quick}
report=$RESULTS/$name
PIECES=runs/gpu/$name
failed=()
mkdir -p "$RESULTS" "$PIECES" "$JAX_COMPILATION_CACHE_DIR"

# run NAME COMMAND...: within what is left of the part; then the report is written anew.
run() {
  local name=$1 left=$((deadline - SECONDS))
  shift
  echo "== $name: $*"
  if [ "$left" -lt 5 ]; then
    echo "$name was not begun: the part's time is used up" | tee "$PIECES/$name-failed.txt"
    failed+=("$name")
  elif timeout "$left" "$@" 2>&1 | tee runs/gpu/log; then
    rm -f "$PIECES/$name-failed.txt"
  else
    { echo "failed; the end of its log:"; tail -n 15 runs/gpu/log; } >"$PIECES/$name-failed.txt"
    failed+=("$name")
  fi
  report_now
}

report_now() {
  "$PYTHON" benchmarks/gpu_report.py "$PIECES" "$report.json" "$report.md"
}

# measure NAME BENCHMARK OPTIONS...
measure() {
  local name=$1 benchmark=$2
  shift 2
  rm -f "$PIECES/$name.json"
  run "$name" "$PYTHON" "benchmarks/$benchmark.py" $quick --json="$PIECES/$name.json" "$@"
}

check() {
  if ! "$PYTHON" -c 'import pytest' 2>/dev/null; then
    echo "the tests were not run: no pytest" | tee "$PIECES/check.txt"
    report_now
    return
  fi
  local where=(tests) workers=()
  [ -z "$quick" ] || where=(tests/benchmarks)
  if [ -z "$quick" ] && "$PYTHON" -c 'import xdist' 2>/dev/null; then
    workers=(-n 4 --dist loadfile)
  fi
  # Several processes share the GPU; float32 is float32, since the references are.
  XLA_PYTHON_CLIENT_PREALLOCATE=false JAX_DEFAULT_MATMUL_PRECISION=highest \
    run check "$PYTHON" -m pytest "${where[@]}" "${workers[@]}"
  tail -n 25 runs/gpu/log >"$PIECES/check.txt"
  report_now
}

small() {
  local sizes=(--models=vit_tiny_patch16_224,vit_small_patch16_224 --dtype=bfloat16 --batch=256)
  [ -z "$quick" ] || sizes=(--batch=4)
  measure small-train_step train_step "${sizes[@]}"
  measure small-dispatch dispatch
}

large() {
  local sizes=(--models=vit_base_patch16_224 --dtype=bfloat16 --batch=256 --rounds=20)
  [ -z "$quick" ] || sizes=(--models=vit_small_patch16_224 --batch=4)
  measure large-b16 train_step "${sizes[@]}" --against=timm
  measure large-b16-scan train_step "${sizes[@]}" --against=timm --scan
  [ "$platform" != gpu ] ||
    measure large-b16-cudnn train_step "${sizes[@]}" --against=timm --attention=cudnn
}

train() {
  local recipe=digits.py changes=()
  if [ -n "$data" ]; then
    recipe=folder.py:$data
    changes=(--config.model.name=vit_small_patch8_64 --config.batch_size=512
             --config.data.threads="$(nproc)")
    [ "$platform" != gpu ] || changes+=(--config.model.dtype=bfloat16)
  fi
  if [ -n "$quick" ]; then
    changes=(--config.total_epochs=1 --config.schedule.warmup_epochs=0
             --config.eval_every_epochs=1)
  fi
  rm -rf runs/gpu/train "$PIECES/train.json"
  run train "$PYTHON" -m vit_jax.cli train --config="$recipe" --workdir=runs/gpu/train \
    "${changes[@]}" "${overrides[@]}"
  [ ! -f runs/gpu/train/result.json ] || cp runs/gpu/train/result.json "$PIECES/train.json"
  report_now
}

for part in "${parts[@]}"; do
  deadline=$((SECONDS + LIMIT))
  "$part"
done

echo "== $report.md"
cat "$report.md"
[ "$platform" = gpu ] || echo "No GPU was had: these are figures of $device."
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
