#!/bin/bash
# Convert data to a store with a SLURM job array; every task does its part, a last job merges them.
#
#   store=stores/omol4m
#   id=$(sbatch --parsable --array=0-15 --cpus-per-task=8 scripts/convert_array.sh omol25/train_4M $store)
#   sbatch --dependency=afterok:$id --wrap "mlip data convert $store --merge"
#
# A task that was killed or timed out goes on where it was when it is submitted again.
#SBATCH --job-name=mlip-convert
#SBATCH --time=04:00:00
set -euo pipefail
exec mlip data convert "$@" \
  --shard "${SLURM_ARRAY_TASK_ID}/${SLURM_ARRAY_TASK_COUNT}" \
  --processes "${SLURM_CPUS_PER_TASK:-1}"
