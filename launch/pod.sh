# What startup.sh needs besides in a pod of a JobSet; launch/jobset.py puts it before the first command.
# The pod's environment has NAME, SHOW, RESTARTS and JOB_COMPLETION_INDEX, the lines above COORDINATOR
# (empty where processes find each other), PROCESSES and LEASE.

ATTEMPT=$ATTEMPT-$RESTARTS
trap 'exit 75' TERM # the first process of a container has to ask for it; later the run is told

if [ -n "$COORDINATOR" ]; then
  COMMAND+=("--coordinator=$COORDINATOR" "--processes=$PROCESSES")
  COMMAND+=("--process_id=$JOB_COMPLETION_INDEX")
fi

# A process that was killed keeps its lease of the run's folder for so many seconds.
if [ "$RESTARTS" != 0 ]; then sleep "$LEASE"; fi

exit() {
  local code=$1
  # Before there is a run, it is a package server or a bucket that failed, which may pass.
  if [ "$code" = 1 ] && [ -z "${run:-}" ]; then code=76; fi
  # Hosts that miss one with an error of the user's end with 76, and before it. Kubernetes goes by
  # the first end that it hears of, so they wait.
  if [ "$code" = 76 ] && [ -n "${run:-}" ] && [ -z "${WAITED:-}" ]; then
    WAITED=yes
    sleep 20
  fi
  builtin exit "$code"
}
