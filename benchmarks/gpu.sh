#!/usr/bin/env bash
# Checks and measures on a CUDA machine, from a checkout, without a network and without installing.
#
#   bash benchmarks/gpu.sh [--quick] [--data=FOLDER] [--results=FOLDER] [PART ...] [-- OVERRIDES]
#
# Parts, each within ten minutes (the first five by default, in this order):
#   check      the memory of S, B and L/16 as a plan says it and as compiled here; cuDNN's attention
#              against XLA's; a training in float32 and one in bfloat16, whose
#              losses are compared, and its evaluation, on the images of --data, or on the digits
#   small      training steps of Ti/16, S/16, B/16 at 224 px beside timm, and the host time of a step
#   large      training steps of L/16 and H/14 at 224 px, B/16 and L/16 at 384 px, beside timm
#   inference  the forward pass of all of them, beside timm's
#   train      a training to its end: digits, or S/8 at 64 px on the images of --data
#   tests      the test suite
#
# --data=FOLDER has SPLIT/CLASS/*, SPLIT being train and val. OVERRIDES (--config.KEY=VALUE) are of
# the trainings. --quick takes tiny sizes and the first case of each part; it runs to its end on a
# CPU too. Results go to benchmarks/results/DATE-DEVICE.{json,md}, written anew after each run; a
# part run later that day adds to them, and `train` goes on where its time was used up. Compiled
# programs are kept in .jax_cache from one part to the next (JAX_COMPILATION_CACHE_DIR moves them).
# PYTHON names the interpreter, python3 by default; LIMIT the seconds of a part; WORK where pieces
# and work folders go, runs/gpu by default.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
RESULTS=benchmarks/results
WORK=${WORK:-runs/gpu}
LIMIT=${LIMIT:-570}
quick="" data="" parts=() overrides=()
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=--quick ;;
    --data=*) data=${1#*=} ;;
    --results=*) RESULTS=${1#*=} ;;
    --) shift; overrides=("$@"); break ;;
    check|small|large|inference|train|tests) parts+=("$1") ;;
    *) sed -n '2,22s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
  shift
done
[ ${#parts[@]} -gt 0 ] || parts=(check small large inference train)
if [ -n "$data" ] && [ ! -d "$data/train" ]; then
  echo "gpu.sh: --data=$data has no folder train; it is to hold train/CLASS/* and val/CLASS/*"
  exit 2
fi

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$JAX_COMPILATION_CACHE_DIR/inductor}
device=$("$PYTHON" -c 'import jax; d = jax.devices()[0]; print(d.platform, d.device_kind)') || exit 1
platform=${device%% *}
slug=$(tr -cs '[:alnum:]\n' - <<<"${device#* }" | tr '[:upper:]' '[:lower:]')
name=$(date -u +%Y-%m-%d)-$slug${quick:+-quick}
report=$RESULTS/$name
PIECES=$WORK/$name
failed=()
mkdir -p "$RESULTS" "$PIECES" "$JAX_COMPILATION_CACHE_DIR"
bfloat16=bfloat16
[ "$platform" = gpu ] || [ -n "$quick" ] || bfloat16=float32  # emulated on a CPU, it takes for ever

# run NAME COMMAND...: within what is left of the part; then the report is written anew.
run() {
  local name=$1 left=$((deadline - SECONDS)) code=0
  shift
  echo "== $name: $*"
  rm -f "$PIECES/$name-failed.txt"
  if [ "$left" -lt 5 ]; then
    code="not begun: the part's time is used up"
    : >"$WORK/log"
  else
    timeout --kill-after=30 "$left" "$@" 2>&1 | tee "$WORK/log" || code=${PIPESTATUS[0]}
    [ "$code" != 124 ] || code="the part's time is used up"
  fi
  if [ "$code" != 0 ]; then
    { echo "failed ($code); the end of its log:"; tail -n 15 "$WORK/log"; } \
      >"$PIECES/$name-failed.txt"
    failed+=("$name")
  fi
  report_now
  [ "$code" = 0 ]
}

report_now() {
  "$PYTHON" benchmarks/gpu_report.py "$PIECES" "$report.json" "$report.md" "$device"
}

# measure NAME BENCHMARK OPTIONS...
measure() {
  local name=$1 benchmark=$2
  shift 2
  rm -f "$PIECES/$name.json"
  run "$name" "$PYTHON" "benchmarks/$benchmark.py" $quick --json="$PIECES/$name.json" "$@"
}

# steps PART OPTIONS -- MODEL:BATCH[:SIZE]...: a run each, so that the memory of each is its own.
steps() {
  local part=$1 options=() cases model batch size
  shift
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  cases=("$@")
  [ -z "$quick" ] || cases=("$1")
  for case in "${cases[@]}"; do
    IFS=: read -r model batch size <<<"$case"
    [ -z "$quick" ] || batch=2 size=""
    measure "$part-$model${size:+-at-$size}" train_step --models="$model" --batch="$batch" \
      --dtype="$bfloat16" --against=timm --seconds=40 ${size:+--size="$size"} "${options[@]}"
  done
}

SMALL=(vit_tiny_patch16_224:256 vit_small_patch16_224:256 vit_base_patch16_224:256)
LARGE=(vit_large_patch16_224:128 vit_huge_patch14_224:64 vit_base_patch16_224:128:384
       vit_large_patch16_224:64:384)

# train_on NAME OPTIONS...: a training in runs/gpu/NAME, which goes on where it was stopped.
train_on() {
  local name=$1 recipe=digits.py short=()
  shift
  [ -z "$data" ] || recipe=folder.py:$data short=(--config.data.threads="$(nproc)")
  [ -z "$quick" ] || short+=(--config.total_epochs=1 --config.schedule.warmup_epochs=0
                             --config.eval_every_epochs=1 --config.model.num_layers=1
                             --config.log_every_steps=2)
  [ ! -f "$PIECES/work-$name/result.json" ] || rm -rf "$PIECES/work-$name"
  run "$name" "$PYTHON" -m vit_jax.cli train --config="$recipe" --workdir="$PIECES/work-$name" \
    "${short[@]}" "$@" "${overrides[@]}" || return
  cp "$PIECES/work-$name/result.json" "$PIECES/$name.json"
  report_now
}

# What a plan says of this kind of GPU without one, beside what the compiler makes where it is.
plans() {
  local kind
  [ "$platform" = gpu ] || return 0
  kind=$("$PYTHON" -c 'import sys; from vit_jax.parallel.chips import chip_of
chip = chip_of(sys.argv[1]); print(chip.name if chip else "")' "${device#* }")
  [ -n "$kind" ] || { echo "no plan: ${device#* } is described nowhere"; return 0; }
  JAX_PLATFORMS=cpu JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 \
    measure plan-without-it gpu_compiled --quick --gpus="$kind" --only="16 at 224"
  measure plan-on-it gpu_compiled --quick --gpus="$kind" --only="16 at 224"
}

check() {
  local short=()
  plans
  measure check-attention cudnn_attention
  [ -z "$data" ] || [ -n "$quick" ] ||
    short=(--config.batch_size=256 --config.total_epochs=3 --config.schedule.warmup_epochs=1
           --config.eval_every_epochs=1 --config.log_every_steps=20)
  for dtype in float32 bfloat16; do
    train_on "check-$dtype" --config.model.dtype="$dtype" "${short[@]}"
    # Of a few hundred held-out images the loss swings more than rounding does: training's alone.
    [ ! -f "$PIECES/work-check-$dtype/metrics.jsonl" ] ||
      grep '"loss":' "$PIECES/work-check-$dtype/metrics.jsonl" >"$WORK/$dtype.jsonl"
  done
  run check-curves "$PYTHON" -m vit_jax.cli compare-curve --loss=0.1 \
    "$WORK/bfloat16.jsonl" "$WORK/float32.jsonl" &&
    cp "$WORK/log" "$PIECES/check-curves.txt"
  run check-evaluate "$PYTHON" -m vit_jax.cli evaluate \
    --workdir="$PIECES/work-check-bfloat16" --json="$PIECES/check-evaluate.json"
}

small() {
  steps small -- "${SMALL[@]}"
  [ -n "$quick" ] || measure small-dispatch dispatch
}

large() {
  steps large -- "${LARGE[@]}"
}

inference() {
  steps inference --what=forward -- "${SMALL[@]}" "${LARGE[@]}"
}

train() {
  local changes=()
  [ -z "$data" ] || changes=(--config.model.name=vit_small_patch8_64 --config.batch_size=512)
  [ "$platform" != gpu ] || changes+=(--config.model.dtype=bfloat16)
  train_on train "${changes[@]}"
}

tests() {
  if ! "$PYTHON" -c 'import pytest' 2>/dev/null; then
    echo "the tests were not run: no pytest" | tee "$PIECES/tests.txt"
    report_now
    return
  fi
  local where=(tests) workers=()
  [ -z "$quick" ] || where=(tests/models/test_macs.py)
  if [ -z "$quick" ] && "$PYTHON" -c 'import xdist' 2>/dev/null; then
    workers=(-n 4 --dist loadfile)
  fi
  # Several processes share the GPU; float32 is float32, since the references are.
  XLA_PYTHON_CLIENT_PREALLOCATE=false JAX_DEFAULT_MATMUL_PRECISION=highest \
    run tests "$PYTHON" -m pytest "${where[@]}" "${workers[@]}"
  tail -n 25 "$WORK/log" >"$PIECES/tests.txt"
  report_now
}

for part in "${parts[@]}"; do
  deadline=$((SECONDS + LIMIT))
  "$part"
done

report_now
echo "== $report.md"
cat "$report.md"
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
