#!/bin/bash
# What every host does when it starts, of a Cloud TPU slice as its metadata's startup-script: fetch the
# copy of the repository, install what it needs, run the same command as all the others, and leave its
# log and how it ended in the run's folder. Nobody has to log in.
#
# launch/startup.py sets, above this line:
#   ATTEMPT   name of the request that made this slice      PLACE   WORKDIR/launch, gs:// or a folder
#   ARCHIVE   the copy of the repository, and its SHA256    COMMAND what Python runs
#   PYTHON    one that has the requirements; empty: an environment is made, with Python
#   VERSION   in this version, with the EXTRA of pyproject.toml, by this UV
#   PERIOD    seconds between two looks at the log and at whether the run is to stop
# and where there is no Cloud TPU's metadata server to ask:
#   NAME      of this host                                  SHOW    not empty: the log goes to stdout
#                                                                   as well
#
# It knows these variables of the environment, which nothing sets on Cloud TPU: GCE_METADATA_IP (as
# in JAX) and STORAGE_EMULATOR_HOST (as in Google's libraries) are other servers than Google's, and
# BIOMEDLM_HOME is another folder than /opt/biomedlm.
set -euo pipefail
export HOME=${HOME:-/root} # which a startup script has not

HOME_FOLDER=${BIOMEDLM_HOME:-/opt/biomedlm}
STORAGE=${STORAGE_EMULATOR_HOST:-https://storage.googleapis.com}
LOG=$HOME_FOLDER/$ATTEMPT.log
mkdir -p "$HOME_FOLDER"
if [ -n "${SHOW:-}" ]; then
  exec > >(tee -a "$LOG") 2>&1
else
  exec >>"$LOG" 2>&1
fi

# --- This host, as the metadata server knows it; every request is tried six times -------------------
curl_() {
  curl --silent --show-error --fail --connect-timeout 10 --max-time 300 --retry 5 --retry-delay 2 \
    --retry-all-errors "$@"
}
metadata() {
  curl_ -H "Metadata-Flavor: Google" \
    "http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/$1"
}
if [ -z "${NAME:-}" ]; then # SLICE-WORKER
  worker=$(metadata attributes/agent-worker-number)
  slice=$(metadata attributes/tpu-env | sed -n "s/^MEGASCALE_SLICE_ID: *'\{0,1\}\([0-9]*\).*/\1/p")
  NAME=${slice:-0}-$worker
fi

# --- Files in a bucket, or in a folder that all hosts share ----------------------------------------
authorized() {
  local token
  token=$(metadata service-accounts/default/token | sed 's/.*"access_token": *"\([^"]*\)".*/\1/')
  curl_ -H "Authorization: Bearer $token" "$@"
}
object() { # of gs://BUCKET/NAME, as its URL has it
  local path=${1#gs://}
  local name=${path#*/}
  echo "${path%%/*}/o/${name//\//%2F}"
}
get() { # PLACE FILE
  case $1 in
    gs://*) authorized -o "$2" "$STORAGE/storage/v1/b/$(object "$1")?alt=media" ;;
    *) cp "$1" "$2" ;;
  esac
}
put() { # FILE PLACE
  local path=${2#gs://}
  case $2 in
    gs://*)
      local name=${path#*/}
      authorized -o /dev/null -X POST -H "Content-Type: text/plain" --data-binary "@$1" \
        "$STORAGE/upload/storage/v1/b/${path%%/*}/o?uploadType=media&name=${name//\//%2F}"
      ;;
    *) mkdir -p "$(dirname "$2")" && cp "$1" "$2.$NAME.partial" && mv "$2.$NAME.partial" "$2" ;;
  esac
}
there() { # PLACE
  case $1 in
    gs://*) authorized --retry 0 -o /dev/null "$STORAGE/storage/v1/b/$(object "$1")" 2>/dev/null ;;
    *) [ -e "$1" ] ;;
  esac
}

# --- What is left whatever happens: the log, and the exit code -------------------------------------
save_log() { put "$LOG" "$PLACE/logs/$ATTEMPT/$NAME.log"; }
# shellcheck disable=SC2317,SC2329 # the trap calls it
end() {
  local code=$? began=$SECONDS record
  set +e # what fails here, as on a full disk, does not keep the rest
  trap - EXIT
  trap '' TERM # a machine that goes has said so already, and ends this when it must
  [ -z "${follower:-}" ] || kill "$follower" 2>/dev/null
  echo "host $NAME of $ATTEMPT ends with code $code"
  record=$(printf '{"host": "%s", "code": %d, "time": %d}' "$NAME" "$code" "$(date +%s)")
  save_log || echo "the log could not be saved"
  # Without this record a slice stays, and costs, until somebody looks; a pod needs none.
  until put <(echo "$record") "$PLACE/ends/$ATTEMPT/$NAME.json"; do
    if [ -n "${SHOW:-}" ] || [ $((SECONDS - began)) -gt 1200 ]; then
      echo "how it ended could not be saved"
      break
    fi
    sleep 5
  done
  exit "$code"
}
trap 'exit 75' TERM # preempted before there is a run; else bash would end with 0
trap end EXIT
echo "host $NAME of $ATTEMPT, $(hostname), $(date -u '+%Y-%m-%d %H:%M:%S UTC')"

# --- The repository, and a Python that has what it needs -------------------------------------------
tree=$HOME_FOLDER/$(basename "$ARCHIVE" .tar.gz)
if [ ! -e "$tree/.whole" ]; then
  get "$ARCHIVE" "$HOME_FOLDER/archive.tar.gz"
  if ! echo "$SHA256  $HOME_FOLDER/archive.tar.gz" | sha256sum --check --quiet; then
    echo "error: $ARCHIVE is not what was sent: its sha256 is not $SHA256"
    exit 2
  fi
  rm -rf "$tree" && mkdir -p "$tree"
  tar -xzf "$HOME_FOLDER/archive.tar.gz" -C "$tree" || exit 1 # its 2 is none of the run's
  touch "$tree/.whole"
fi
cd "$tree"
if [ -z "$PYTHON" ]; then
  PYTHON=$tree/.venv/bin/python
  if [ ! -e "$tree/.venv/.installed" ]; then
    save_log || true
    uv=$HOME_FOLDER/uv/bin/uv
    # A failure here may pass; 2, which is uv's code for it, would be an error of the run's settings.
    {
      python3 -m pip install --quiet --target "$HOME_FOLDER/uv" --upgrade "uv==$UV" &&
        "$uv" venv --quiet --clear --python "$VERSION" "$tree/.venv" &&
        "$uv" pip install --quiet --python "$PYTHON" -r requirements.txt ".[$EXTRA]"
    } || exit 1
    touch "$tree/.venv/.installed"
  fi
fi

# --- The run. SIGTERM, or a file named stop in PLACE, lets it save and end -------------------------
export PYTHONUNBUFFERED=1
"$PYTHON" "${COMMAND[@]}" &
run=$!
trap 'kill -TERM "$run" 2>/dev/null || true' TERM
follow() {
  local size=-1 now told=
  while sleep "$PERIOD"; do
    now=$(stat -c %s "$LOG")
    if [ "$now" != "$size" ]; then
      save_log && size=$now
    fi || true
    if [ -z "$told" ] && there "$PLACE/stop"; then
      told=yes
      kill -TERM "$run" 2>/dev/null || true
    fi
  done
}
follow &
follower=$!
while :; do
  code=0
  wait "$run" || code=$?
  kill -0 "$run" 2>/dev/null || break # else a signal has ended the wait, not the run
done
if [ "$code" -gt 128 ]; then # as one may have done at the run's very end
  code=0
  wait "$run" || code=$?
fi
exit "$code"
