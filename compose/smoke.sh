#!/usr/bin/env bash
# `make compose-smoke`: compose.yaml exercised for real by podman (--runtime runc), without a Docker engine or an image
# registry: a base image made by debootstrap, Debian's Mosquitto and PostgreSQL in place of their official images.
# Needs root, podman, runc, debootstrap, iptables (apt-get install podman runc debootstrap iptables netavark aardvark-dns).
# Not exercised: the images of the OpenTelemetry collector, Prometheus and Grafana, which no package brings.
# EGM_SMOKE_DIR keeps what was downloaded between runs (default: a directory below /var/tmp); EGM_SMOKE_REUSE=yes takes
# the images of the last run as they are.
set -euo pipefail
cd "$(dirname "$0")/.."

work=${EGM_SMOKE_DIR:-/var/tmp/egm-compose-smoke}
base=localhost/egm-base:bookworm
python=${EGM_SMOKE_PYTHON:-.venv/bin/python}
wait_s=180
mkdir -p "$work"
export EGM_CONTAINERS=podman EGM_NETWORK=egm_mesh BUILDAH_ISOLATION=chroot
# Small limits: raising them is what containers are refused first where root is not quite root.
cat > "$work/containers.conf" <<'CONF'
[containers]
default_ulimits = ["nofile=8192:8192", "nproc=8192:8192"]
[engine]
runtime = "runc"
CONF
export CONTAINERS_CONF="$work/containers.conf"
export EGM_IMAGE=localhost/egm:dev MOSQUITTO_IMAGE=localhost/egm-mosquitto:dev POSTGRES_IMAGE=localhost/egm-postgres:dev
export OTEL_EXPORTER_OTLP_ENDPOINT=""

say() { printf '\n== %s\n' "$*"; }
fail() { echo "compose-smoke: $*" >&2; exit 1; }
compose() { "$work/venv/bin/podman-compose" --no-ansi -f compose/compose.yaml "$@" 2>>"$work/compose.log"; }
build() { podman build --quiet --ulimit nofile=8192:8192 --ulimit nproc=8192:8192 --build-arg "BASE=$base" "$@" >/dev/null; }
call() { podman exec "egm-service-$1" python /opt/compose/call.py "$2"; }

# What must come true, tried until it does: until_true "what" command…
until_true() {
  local what=$1 end=$((SECONDS + wait_s)); shift
  until "$@" >"$work/last" 2>&1; do
    [ $SECONDS -lt $end ] || fail "$what did not happen: $(tail -3 "$work/last")"
    sleep 1
  done
  echo "ok   $what"
}
refused() { ! call "$1" "$2" >"$work/refusal" && grep -q "$3" "$work/refusal"; }
exited_well() {
  [ "$(podman inspect --format '{{.State.Status}} {{.State.ExitCode}}' "$1")" = "exited 0" ]
}
healthy() { podman healthcheck run "egm-$1"; }

clean() {
  compose down --volumes >/dev/null || true
  # What a container that was still ending held on to; the names are those of compose.yaml.
  podman volume ls --quiet | grep -E '^egm_(domain|operator|broker|postgres-secret|postgres|control-plane|prometheus|a|b|c)$' |
    xargs -r podman volume rm -f >/dev/null || true
}
trap 'status=$?; if [ $status != 0 ]; then for one in setup publish control-plane a; do echo "--- egm-$one"; podman logs --tail 15 "egm-$one" 2>&1 || true; done; fi; clean; exit $status' EXIT

for need in podman runc debootstrap iptables; do
  command -v "$need" >/dev/null || fail "$need is not installed; see the head of compose/smoke.sh"
done

say "images"
[ -x "$work/venv/bin/podman-compose" ] || { "$python" -m venv "$work/venv"; "$work/venv/bin/python" -m pip install -q podman-compose >"$work/pip.log" 2>&1; }
if ! podman image exists "$base"; then
  [ -d "$work/base/usr" ] || debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/base" >"$work/debootstrap.log"
  tar -C "$work/base" -c . | podman import - "$base" >/dev/null
fi
if [ "${EGM_SMOKE_REUSE:-no}" = no ]; then
  "$python" -m pip wheel -q --disable-pip-version-check -w compose/wheels . hatchling editables >"$work/pip.log" 2>&1 || fail "pip wheel: see $work/pip.log"
  rm -f compose/wheels/egmesh-*
  build -t "$EGM_IMAGE" --build-arg "PIP_ARGS=--no-index --find-links /wheels" -f compose/Dockerfile .
  build --target mosquitto -t "$MOSQUITTO_IMAGE" -f compose/smoke/Dockerfile.parts .
  build --target postgres -t "$POSTGRES_IMAGE" -f compose/smoke/Dockerfile.parts .
fi
echo "ok   images are there"

# Health checks of podman need systemd to run by themselves, and waiting for conditions a newer podman: here it is the
# script that brings the parts up in the order of depends_on.
say "bring up"
clean
compose up -d --no-deps setup >/dev/null
until_true "setup made the trust domain" exited_well egm-setup
compose up -d --no-deps postgres mosquitto >/dev/null
until_true "PostgreSQL is healthy" healthy postgres
until_true "Mosquitto answers over TLS" healthy mosquitto
compose up -d --no-deps control-plane >/dev/null
until_true "the control plane is healthy" healthy control-plane
compose up -d --no-deps publish >/dev/null
until_true "two approvers signed the first policy" exited_well egm-publish
compose up -d --no-deps a b c >/dev/null
for node in a b c; do until_true "node $node is healthy" healthy "$node"; done
compose up -d --no-deps service-a service-b service-c >/dev/null

say "what is promised"
until_true "a calls b" call a b
until_true "b calls c" call b c
[ "$(podman exec egm-a id -u)" = 10001 ] || fail "egm-a runs as $(podman exec egm-a id -un)"
echo "ok   not root"
if podman exec egm-a sh -c 'echo x > /opt/x' 2>/dev/null; then fail "the root filesystem of egm-a can be written"; fi
echo "ok   read-only root filesystem"
[ "$(podman exec egm-a sh -c 'grep CapEff /proc/1/status' | tr -d '[:space:]')" = "CapEff:0000000000000000" ] || fail "egm-a has capabilities"
echo "ok   no capabilities"
status() { podman run --rm --read-only --network "$EGM_NETWORK" --volume egm_operator:/vol/operator --env EGM_MESH=/vol/operator "$EGM_IMAGE" status; }
until_true "egm status finds every node ready" status
cat "$work/last"

say "partition: a is off the network"
compose/partition.sh isolate a
until_true "a seals itself" refused a b POLICY_STALE
until_true "b and c go on" call b c
compose/partition.sh heal
until_true "a is healthy again" healthy a
until_true "a calls b again" call a b

say "partition: packets between b and everybody else are dropped"
compose/partition.sh cut b control-plane mosquitto a c
until_true "b seals itself" refused b c POLICY_STALE
compose/partition.sh heal
until_true "b is healthy again" healthy b
until_true "b calls c again" call b c

say "crash"
podman kill --signal KILL egm-control-plane >/dev/null
until_true "calls go on without the control plane" call a b
podman start egm-control-plane >/dev/null
until_true "the control plane is healthy again" healthy control-plane
echo
echo "compose-smoke: every check held"
