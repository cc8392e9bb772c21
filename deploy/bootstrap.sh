#!/usr/bin/env bash
# Makes sure that this machine has what Runyard needs, and shows what it does. Quick when there is nothing to do.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: deploy/bootstrap.sh [compose] [RUNTIME...]

Makes sure of: uv, the locked Python environment (.venv), a Docker Engine that answers, Apache Kafka's jars,
with `compose` Docker Compose, and the images of the runtimes that are named (python3.10, python3.11, python3.12).

Only what is missing is done. As root on Debian or Ubuntu a missing Docker Engine is installed and started, and a missing
Compose is installed; elsewhere you are told what to do. Downloads are kept in ${RUNYARD_CACHE_DIR:-~/.cache/runyard}.
TEXT
}

case "${1:-}" in -h | --help) usage; exit 0 ;; esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
WITH_COMPOSE=
if [ "${1:-}" = compose ]; then WITH_COMPOSE=1 && shift; fi
readonly WITH_COMPOSE
readonly RUNTIMES=("$@")
readonly STARTED=$SECONDS
readonly SOCKET=/var/run/docker.sock
PATH=$PATH:/usr/sbin:/sbin # where dockerd is, and what a plain `su` leaves out
LOGS=$(mktemp -d)
readonly LOGS
trap 'rm -rf "$LOGS"' EXIT

say() { printf '[bootstrap %3ds] %s\n' "$((SECONDS - STARTED))" "$*"; }

fail() {
  printf 'bootstrap: %s\n' "$*" >&2
  exit 1
}

# Run a step with its output in a file; show the file only if the step fails.
step() {
  local name=$1 log="$LOGS/$1" began=$SECONDS
  shift
  if ("$@") >"$log" 2>&1; then # a subshell, so that a `fail` inside ends the step and its words are shown
    say "$name: done in $((SECONDS - began)) s"
  else
    say "$name: FAILED"
    cat "$log" >&2
    return 1
  fi
}

apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -qq "$@"; }

is_root_on_debian() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

# A python3 that starts: shims of version managers may answer that they know a version, and then fail.
find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11 "$HOME"/.pyenv/versions/*/bin/python3 /usr/bin/python3; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

install_uv() {
  local python
  if ! python=$(find_python); then
    is_root_on_debian || fail "needs uv, or a python3 (3.9 or later) with venv. Install either: https://docs.astral.sh/uv/"
    apt_get update && apt_get install -y --no-install-recommends python3-venv
    python=$(find_python) || fail "python3-venv was installed, and still no python3 with venv starts"
  fi
  "$python" -m venv .tools/uv && .tools/uv/bin/pip install --quiet uv
}

ensure_uv() {
  if command -v uv >/dev/null; then
    UV=$(command -v uv)
  else
    UV=.tools/uv/bin/uv
    [ -x "$UV" ] || { say "uv: installing into .tools"; step uv install_uv; }
  fi
}

# uv looks for interpreters on PATH; those of a version manager are beside it.
sync_environment() {
  local search=$PATH
  for folder in "$HOME"/.pyenv/versions/*/bin; do search+=":$folder"; done
  PATH=$search "$UV" sync --locked --all-extras --all-groups
}

ensure_environment() {
  local stamp=.venv/.runyard-stamp
  if [ -x .venv/bin/runyard ] && [ "$stamp" -nt uv.lock ] && [ "$stamp" -nt pyproject.toml ]; then return; fi
  say "environment: installing what uv.lock says"
  step environment sync_environment && touch "$stamp"
}

engine_socket() {
  local address=${DOCKER_HOST:-unix://$SOCKET}
  echo "${address#unix://}"
}

engine_answers() {
  case "${DOCKER_HOST:-unix://$SOCKET}" in
    unix://*) curl -sf --max-time 5 --unix-socket "$(engine_socket)" http://docker/_ping ;;
    tcp://*) curl -sf --max-time 5 "http://${DOCKER_HOST#tcp://}/_ping" ;;
    *) return 1 ;;
  esac >/dev/null
}

install_engine() { apt_get update && apt_get install -y --no-install-recommends docker.io; }

start_engine() {
  if [ -d /run/systemd/system ]; then
    systemctl start docker
  else # the engine must not inherit the lock, which it would hold for as long as it lives
    setsid nohup dockerd >/var/log/dockerd.log 2>&1 </dev/null 9>&- &
  fi
  for _ in $(seq 300); do
    if engine_answers; then return; fi
    sleep 0.2
  done
  echo "dockerd did not answer within a minute; the end of /var/log/dockerd.log:"
  tail -n 20 /var/log/dockerd.log
  return 1
}

ensure_engine() {
  if engine_answers; then return; fi
  [ -z "${DOCKER_HOST:-}" ] || fail "no Docker Engine answers at DOCKER_HOST=$DOCKER_HOST: start it, or unset DOCKER_HOST"
  if [ -S "$SOCKET" ] && [ ! -w "$SOCKET" ]; then
    fail "a Docker Engine is here, but you may not use it: add yourself to its group (sudo usermod -aG docker $(id -un)) and log in again"
  fi
  is_root_on_debian || fail "no Docker Engine answers. Install one (https://docs.docker.com/engine/install/), start it, and try again"
  if ! command -v dockerd >/dev/null; then
    say "engine: installing docker.io"
    step engine install_engine
  fi
  say "engine: starting dockerd"
  step dockerd start_engine
}

compose_answers() { docker compose version || docker-compose version; } >/dev/null 2>&1

install_compose() { apt_get update && apt_get install -y --no-install-recommends docker-compose; }

ensure_compose() {
  if [ -z "$WITH_COMPOSE" ] || compose_answers; then return; fi
  is_root_on_debian || fail "Docker Compose is missing. Install it (https://docs.docker.com/compose/install/) and try again"
  say "compose: installing docker-compose"
  step compose install_compose
}

ensure_jars() {
  local version
  version=$(sed -n 's/^VERSION = "\(.*\)"$/\1/p' services/cli/embedded_kafka.py)
  if [ -d "${RUNYARD_CACHE_DIR:-$HOME/.cache/runyard}/kafka-$version" ]; then return; fi
  say "kafka: fetching its jars"
  step kafka .venv/bin/python -m services.cli.embedded_kafka --fetch
}

ensure_images() {
  [ ${#RUNTIMES[@]} -gt 0 ] || return 0
  .venv/bin/python -m services.runner.sandbox_images build "${RUNTIMES[@]}"
}

# Wait for background parts by pid; one failure fails all.
together() {
  local pid status=0
  for pid in "$@"; do wait "$pid" || status=1; done
  return $status
}

install_curl() { apt_get update && apt_get install -y --no-install-recommends curl; }

mkdir -p .tools
exec 9>.tools/bootstrap.lock
flock -n 9 || { say "waiting for another bootstrap of this checkout"; flock 9; }

command -v curl >/dev/null || { is_root_on_debian && step curl install_curl; } || fail "needs curl"
ensure_uv
{ ensure_engine && ensure_compose; } & engine=$! # one after the other: both may need apt
ensure_environment || { wait; fail "not ready: see above"; } # `wait`: an installation under way is not cut off
ensure_jars & jars=$!
together $engine || { wait; fail "not ready: see above"; }
ensure_images & images=$!
together $jars $images || fail "not ready: see above"
say "ready"
