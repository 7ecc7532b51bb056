#!/usr/bin/env bash
# One config on the GPUs of a Slurm cluster, from submission to the last step:
#
#   sbatch --nodes=16 --gpus-per-node=8 --exclusive --mem=0 --time=24:00:00 launch/slurm.sh \
#     --config=configs/pretrain_2p7b.py --workdir=DIR
#
# Given in the repository's folder, on a file system that all nodes see; `python -m launch.slurm` makes
# this line of a launch file. Options of sbatch stand before the script's name, and what stands after
# it goes to biomedlm_jax.main as it is. One process a node takes all its GPUs, with
# --ntasks-per-node=8 there is one for each GPU.
#
# The job puts itself back into the queue when Slurm wants its nodes (a partition's GraceTime is the
# time to save) or its hours are over, for the run then saves and ends with 75, and when a host is lost
# (76) or what it needs does not answer (69). The same job then goes on from its newest save. An error
# of the user's (2) or of the program (1) ends it. `scancel JOB` ends it at once, at the newest save.
#
#   bash launch/slurm.sh --dry_run --config=... --workdir=...    prints what every node runs
#
# Environment: PYTHON (.venv/bin/python), RESTARTS (100): how often the job may begin again.
# Leaves slurm-JOB.log, and slurm-JOB-TASK.log of every process, which grow with every start.

#SBATCH --job-name=biomedlm
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log

set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

dry_run='' workdir='' config='' arguments=()
for argument in "$@"; do
  case $argument in
    --dry_run) dry_run=yes && continue ;;
    --workdir=*) workdir=${argument#*=} ;;
    --config=*) config=${argument#*=} ;;
  esac
  arguments+=("$argument")
done
python=${PYTHON:-.venv/bin/python}
cd "${SLURM_SUBMIT_DIR:-.}"  # the script itself is a copy in Slurm's spool

[[ -f biomedlm_jax/main.py ]] || fail "$PWD is not the repository; give sbatch there"
[[ -f $config ]] || fail "--config=$config names no file; for example --config=configs/demo.py"
[[ -n $workdir ]] || fail "--workdir is missing; name a folder that all nodes see, or one on gs://"

# Several processes seldom end with one code: the one with the mistake says 2, those that then miss
# it 76, and srun gives the highest. So each leaves its own. A signal to the step comes to this
# shell as well, which has to live on until the process has saved.
# shellcheck disable=SC2016  # expanded by the shell of the task
task='trap : TERM; "$@"; code=$?; echo $code >"slurm-$SLURM_JOB_ID-$SLURM_PROCID.code"; exit $code'
step=(
  srun --kill-on-bad-exit=0 --cpu-bind=none --open-mode=append --output=slurm-%j-%t.log
  bash -c "$task" task "$python" -u -m biomedlm_jax.main "${arguments[@]}"
)

if [[ -n $dry_run ]]; then
  echo "${step[*]@Q}"
  exit
fi
[[ -n ${SLURM_JOB_ID:-} ]] || fail "this is no Slurm job; say sbatch launch/slurm.sh ${arguments[*]}"
[[ -x $python ]] || fail "PYTHON=$python is no program; say make setup, or name one by PYTHON="

restarts=${SLURM_RESTART_COUNT:-0}
echo "$(date -u +%FT%TZ) job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start $((restarts + 1))"
rm -f "slurm-$SLURM_JOB_ID"-*.code
if ((restarts > 0)) && [[ $workdir == gs://* ]]; then
  sleep 90  # biomedlm_jax/lock.py: so long the lease of a process that was killed counts
fi

"${step[@]}" &
running=$!
# srun would make SIGKILL of a SIGTERM, so the tasks get it from scancel.
trap 'told=yes wanted=yes; scancel --signal=TERM "$SLURM_JOB_ID" || true' TERM
told=yes wanted='' code=0
while [[ -n $told ]]; do  # a signal ends `wait` before srun has ended
  told='' code=0
  wait "$running" || code=$?
done

codes=$(cat "slurm-$SLURM_JOB_ID"-*.code 2>/dev/null | sort -nu | tr '\n' ' ') || true
echo "$(date -u +%FT%TZ) job $SLURM_JOB_ID: srun ended with $code, its processes with ${codes:-none}"
for wrong in 2 1; do
  [[ " $codes" != *" $wrong "* ]] || exit "$wrong"
done
# A process that is told before it can save ends by the signal.
((code != 0)) && [[ -n $wanted || " $codes" =~ \ (69|75|76)\  ]] || exit "$code"
state=$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")
if [[ $state != RUNNING ]]; then
  echo "not put back into the queue: the job is $state"  # scancel; or Slurm does it itself
elif ((restarts >= ${RESTARTS:-100})); then
  echo "error: begun again $restarts times, as often as RESTARTS allows; see the logs" >&2
else
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
