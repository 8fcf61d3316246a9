#!/usr/bin/env bash
# Trains on one or many nodes, and goes on by itself after preemptions, time limits and lost nodes:
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=12 --time=24:00:00 \
#       docker/slurm_train.sh CONFIG [--section.key=value ...]
#
# One task a GPU; without GPUs, --ntasks-per-node says how many processes. Submit it from a folder
# in which CONFIG, the data and run_dir mean the same on every node. Variables:
#   PYTHON        the interpreter; by default .venv/bin/python where there is one, else python3
#   MAX_FAILURES  ends that nobody asked for that a job may have within a day before it stays ended;
#                 by default 3. They are listed in slurm-JOB.failures: time, exit code
#SBATCH --job-name=simple-diffusion
#SBATCH --requeue
#SBATCH --open-mode=append
# Every task, but not this script, hears USR1 two minutes before the time limit: time to save.
#SBATCH --signal=USR1@120
set -euo pipefail

usage="submit it: sbatch [options of sbatch] docker/slurm_train.sh CONFIG [--section.key=value ...]"
: "${SLURM_JOB_ID:?$usage}" "${1:?$usage}"
tasks=${SLURM_NTASKS_PER_NODE:-1} gpus=${SLURM_GPUS_ON_NODE:-}
if [ -n "$gpus" ] && [ "$gpus" != "$tasks" ]; then
  echo "error: $tasks task(s) on a node with $gpus GPU(s); each GPU needs its own:" \
    "sbatch --ntasks-per-node=$gpus" >&2
  exit 2
fi
python=python3
if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
python=${PYTHON:-$python}

# This script runs on the job's first node, and so does rank 0. The port: below those that the
# kernel gives to outgoing connections; another for each job and each restart, as sockets of the
# last start may linger; and one on which nobody listens.
MASTER_ADDR=$(hostname)
MASTER_PORT=$((10000 + (SLURM_JOB_ID * 61 + ${SLURM_RESTART_COUNT:-0}) % 20000))
while (: <"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do MASTER_PORT=$((MASTER_PORT + 1)); done
export MASTER_ADDR MASTER_PORT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
# Since Slurm 22.05, srun does not take this from sbatch by itself.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

# exec, so that signals meet Python and its exit code comes back. Once a task has ended, the others
# have a minute: killed at once, as --kill-on-bad-exit=1 does, they could not say who was lost.
code=0
# shellcheck disable=SC2016 # these variables are each task's own
srun --kill-on-bad-exit=0 --wait=60 bash -c '
  export WORLD_SIZE=$SLURM_NTASKS RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
  exec "$@"' task "$python" -m simple_diffusion train "$@" || code=$?

# srun's code is the highest of the tasks'. 75: saved because of a signal, or a process was lost;
# above 128: a signal killed a task, but for 130, with which Ctrl-C ends a run that saved. The
# others: done (0), or an error that would come again.
if [ "$code" -eq 130 ] || { [ "$code" -ne 75 ] && [ "$code" -le 128 ]; }; then exit "$code"; fi

# A job that ends within its grace time counts as finished, so it requeues itself: unless it was
# cancelled, or Slurm requeues it already. In both cases it is not running any more. A job that
# was sent a signal moments ago is: its state reads SIGNALING until every node has confirmed.
job=$(scontrol show job --oneliner "$SLURM_JOB_ID")
[[ $job =~ " JobState="(RUNNING|SIGNALING)" " ]] || exit "$code"

# Slurm may ask for the end any number of times; what crashes again and again must stop some time.
now=$(date +%s) why="an end that nobody asked for"
end=$(sed -n 's/.* EndTime=\([^ ]*\).*/\1/p' <<<"$job")
end=$(date -d "$end" +%s 2>/dev/null || echo $((now + 3600))) # "Unknown" without a time limit
if [[ $job == *" PreemptTime="[0-9]* ]]; then
  why="preemption"
elif [ $((end - now)) -lt 200 ]; then # Slurm may warn a minute earlier than it was told to
  why="the time limit"
else
  failures=slurm-$SLURM_JOB_ID.failures
  echo "$now $code" >>"$failures"
  lately=$(awk -v since=$((now - 86400)) '$1 > since { n++ } END { print n + 0 }' "$failures")
  if [ "$lately" -gt "${MAX_FAILURES:-3}" ]; then
    echo "error: $lately ends within a day that nobody asked for (see $failures); not requeued" >&2
    exit "$code"
  fi
fi
echo "requeue after $why (exit code $code)"
scontrol requeue "$SLURM_JOB_ID"
