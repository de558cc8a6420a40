#!/usr/bin/env bash
# ResNet-20 on CIFAR-10 on one accelerator, in calls of under ten minutes: methods
# with momentum 0.9 and without, 1 to 64 workers, the papers' schedule with all
# epochs and milestones divided by 4, the seeds of a cell in one program where a
# probe says that it pays.
#
#   bash launch/cifar10_device.sh look DATA             do the first 200 updates go well?
#   bash launch/cifar10_device.sh table DATA [SECONDS]  what fits into the time (540)
#   bash launch/cifar10_device.sh rehearse DATA [SECONDS]
#
# DATA is the folder, or the archive, of the published files (binary version).
# `table` may be called again: what is in FOLDER (default
# results/cifar10_workers-quarter) is not done again. Where a machine is new each
# time, metrics.jsonl from there goes along with the next call. `rehearse` is a part
# of the table with the first 1 % of the images on the CPU: 100 a file, the same form.
# PYTHON is the interpreter (python). Other arguments go to experiments.reproduce.
#
# Where only small files travel to the device, the archive goes in pieces:
#
#   split -b 60M cifar-10-binary.tar.gz part-    # here: three of them, a call each
#   cat part-* > cifar-10-binary.tar.gz          # there, when all have come
#
# and `table` checks by SHA-1 that they are the published bytes.
set -euo pipefail
python="${PYTHON:-python}"
if (($# < 2)); then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
what="$1" data="$(realpath "$2")" seconds="${3:-540}"
shift $(($# < 3 ? $# : 3))
cd "$(dirname "${BASH_SOURCE[0]}")/.."

of_table() {
  "$python" -m experiments.reproduce --table=cifar10_workers --scale=quarter \
    --processes=1 --seconds="$seconds" --quiet "$@"
}

case "$what" in
  look)
    for workers in 1 16; do
      for warmup in 0 1.25; do
        echo "workers: $workers, warm-up: $warmup epochs"
        "$python" -m experiments.train \
          --flagfile=experiments/presets/cifar10_resnet20.flags \
          --data_path="$data" --method=asgd --workers="$workers" \
          --epochs=0.513 --evaluate_every=0.0641 --warmup_epochs="$warmup" \
          --workdir="runs/cifar10_look-$workers-$warmup" --overwrite
      done
    done
    ;;
  table)
    "$python" -m experiments.prepare --dataset=cifar10 --verify \
      --data_path="$data"
    of_table --data_path="$data" --mapped_seeds \
      --folder="${FOLDER:-results/cifar10_workers-quarter}" "$@"
    ;;
  rehearse)
    if [[ -d "$data/cifar-10-batches-bin" ]]; then
      data="$data/cifar-10-batches-bin"
    fi
    if [[ ! -f "$data/test_batch.bin" ]]; then
      echo "error: $data: rehearse needs the folder with test_batch.bin" >&2
      exit 2
    fi
    folder="${FOLDER:-runs/cifar10_rehearsal}"
    mkdir -p "$folder-data"
    for file in data_batch_{1..5}.bin test_batch.bin; do
      head -c $((100 * 3073)) "$data/$file" >"$folder-data/$file"
    done
    JAX_PLATFORMS=cpu of_table --data_path="$folder-data" \
      --folder="$folder" "$@"
    ;;
  *)
    echo "error: $what: must be one of look, table, rehearse" >&2
    exit 2
    ;;
esac
