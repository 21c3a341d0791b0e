#!/usr/bin/env bash
# What only a GPU can show, in two halves of under six minutes each on an H100 or H200.
#
#   bash benchmarks/gpu_check.sh paths    every path that is taken on a GPU alone: right or wrong
#   bash benchmarks/gpu_check.sh speed    images per second, and 40 epochs of ResNet-50
#   bash benchmarks/gpu_check.sh real     a training on real photos, of the archive that --photos names
#   bash benchmarks/gpu_check.sh pack     makes that archive, at most 45 MB, from ../shared/abid
#   bash benchmarks/gpu_check.sh rows     appends the rows that were measured to benchmarks/results/
#
#   --out DIR      gpu_check.json and the rows as CSV (default outputs/gpu_check)
#   --work DIR     photos, caches and run folders (default: below the system's temporary folder)
#   --photos FILE  the archive (default .cache/gpu_photos.tar.gz)
#   --minutes N    no step starts or runs after this many (default 6)
#   --device cpu   tries the script itself where there is no GPU; --tiny: with as little as can be
#
# Each step has a time limit of its own, and what passed is not run again: after a cut, run the same line again.
# PYTHON names the interpreter. Exit code 1: a step failed, ran out of time or was not reached.
set -uo pipefail
export PYTHONUNBUFFERED=1
folder=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
export PYTHONPATH="$folder/../src${PYTHONPATH:+:$PYTHONPATH}"

paths=(machine:30 bf16:50 fp16:50 compile:120 ddp:60 residence:90 nvml:50 ema:50 resume:90 predict:50)
speed=(resnet50:75 free_loader:120 forty_epochs:300 resnet18:60 resnet101:90)
real=(train_real:330)

half=${1:-} minutes=6 options=()
[ $# -gt 0 ] && shift
while [ $# -gt 0 ]; do
    case $1 in
        --minutes) minutes=${2:?--minutes needs a number} && shift 2 ;;
        --tiny) options+=("$1") && shift ;;
        --out | --work | --photos | --device) options+=("$1" "${2:?$1 needs a value}") && shift 2 ;;
        *) echo "$1: no such option; see the head of $0" >&2 && exit 2 ;;
    esac
done
step() { "$python" "$folder/gpu_check.py" "$@" "${options[@]}"; }

case $half in
    paths) steps=("${paths[@]}") ;;
    speed) steps=("${speed[@]}") ;;
    real) steps=("${real[@]}") ;;
    pack | rows) step "$half" && exit 0 || exit 1 ;;
    *) sed -n '2,20s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac

deadline=$((SECONDS + minutes * 60))
for entry in "${steps[@]}"; do
    name=${entry%%:*} limit=${entry##*:}
    left=$((deadline - SECONDS))
    [ "$left" -lt "$limit" ] && limit=$left
    [ "$limit" -lt 5 ] && break
    timeout --kill-after=10 "$limit" "$python" "$folder/gpu_check.py" "$name" "${options[@]}"
    code=$?
    if [ $code -ge 124 ]; then step note "$name" "out of time: $limit s"; fi
    if [ $code -gt 0 ] && [ $code -lt 124 ]; then step note "$name" "exit code $code: see what it printed"; fi
done
step summary "${steps[@]%%:*}"
