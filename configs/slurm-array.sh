#!/bin/bash
# A Slurm array: each task runs a share of a plan. Set the sizes, then make the plan, run it, and commit it:
#
#   async-maps plan /data/maps s3://my-bucket/overlays --to /data/plan
#   job=$(sbatch --parsable configs/slurm-array.sh /data/plan)
#   sbatch --dependency="afterany:$job" --wrap="async-maps commit /data/plan"
#
# A task that is requeued does the rest of its share. Exit code 3: submit the array again.
#SBATCH --job-name=async-maps
#SBATCH --array=1-8
#SBATCH --cpus-per-task=8
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# A minute before the end, so that the maps in flight are finished.
#SBATCH --signal=B:TERM@60

# exec, so that the signal reaches the command.
exec async-maps run --plan "${1:?usage: sbatch slurm-array.sh PLAN}" --part auto --progress log
