#!/bin/bash
# One row of the paper's table: train, then evaluate. On Slurm, or on any machine with GPUs:
#
#   sbatch train/paper.sh imagenet_c_byol_1000 /data [OUT] [options of train.pretrain]
#   GPUS=4 bash train/paper.sh imagenet_simclr_1000_2x /data
#
# /data holds imagenet/{train,val} and, as far as they are wanted, imagenet-c, imagenet-a, imagenet-r, imagenet-v2,
# imagenet-sketch, objectnet; what is missing is named and left out. Run the same command again to go on.
#
#SBATCH --job-name=paper
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=48:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
set -euo pipefail
recipe=$1 data=$2 out=${3:-runs/$1}
shift $(($# < 3 ? $# : 3))
python=${PYTHON:-python} gpus=${GPUS:-8} device=${DEVICE:-cuda} precision=${PRECISION:-bf16}
export OMP_NUM_THREADS=1

# A notice of the scheduler (time is up, preempted) reaches the ranks, which save their state; Slurm queues the job again.
finish() {
  kill -TERM "$child" 2>/dev/null || true
  wait "$child" || true
  [ -n "${SLURM_JOB_ID:-}" ] && scontrol requeue "$SLURM_JOB_ID"
  exit 143
}
trap finish TERM

# GPUS=0 trains in one process, on DEVICE.
launcher=("$python")
[ "$gpus" -gt 0 ] && launcher=("$python" -m torch.distributed.run --standalone --nproc-per-node "$gpus")
"${launcher[@]}" -m train.pretrain "$recipe" --data "$data/imagenet" --out "$out" --device "$device" --precision "$precision" "$@" &
child=$!
wait "$child"

conditions=()
if [ -d "$data/imagenet-c" ]; then conditions+=(--corrupted "$data/imagenet-c"); else echo "not there: $data/imagenet-c"; fi
for shifted in imagenet-a imagenet-r imagenet-v2 imagenet-sketch objectnet; do
  if [ -d "$data/$shifted" ]; then conditions+=(--shift "$shifted=$data/$shifted"); else echo "not there: $data/$shifted"; fi
done
"$python" -m lipcomp.robustness "$out/model.safetensors" --data "$data/imagenet" --probe "${PROBE:-augmented}" --device "$device" \
  --corruptions none ${conditions[@]+"${conditions[@]}"} --out "$out/robustness.jsonl" &
child=$!
wait "$child"
