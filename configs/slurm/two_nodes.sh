#!/bin/bash
# One stage on two machines with eight GPUs each, under Slurm:
#   sbatch configs/slurm/two_nodes.sh stages/sft.py --config configs/30b_2nodes/sft.yaml --clips … --output_dir …
# Run it from the project's folder, which both machines must see under the same path. Set account and partition as your
# cluster wants them. An interrupted job goes on where it stopped when it is submitted again.
#SBATCH --job-name=migr
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=runs/slurm-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start me with sbatch}"
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # not head: it would close the pipe on scontrol
export HEAD HF_HUB_OFFLINE=1 OMP_NUM_THREADS=8
# accelerate starts eight processes on each machine; the backslashes keep the variables for srun's shell, where each
# machine has its own SLURM_NODEID
srun bash -c "exec ${ACCELERATE:-.venv/bin/accelerate} launch --config_file configs/accelerate/zero3_2nodes.yaml \
  --machine_rank \$SLURM_NODEID --main_process_ip \$HEAD \"\$@\"" migr "$@"
