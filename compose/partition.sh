#!/usr/bin/env bash
# Partitions of the containers of compose.yaml.
#   partition.sh isolate NODE      take a node (a, b or c, with its service) off the network: everywhere
#   partition.sh cut NODE OTHER…   drop packets between NODE and others (a b c control-plane mosquitto): Linux, as root
#   partition.sh heal              take every cut away and put every node back
#   partition.sh status            each node's own readiness
# EGM_CONTAINERS: docker (default where it answers) or podman.
set -euo pipefail

engine=${EGM_CONTAINERS:-$(docker info >/dev/null 2>&1 && echo docker || echo podman)}
network=${EGM_NETWORK:-egm_mesh}
nodes=(a b c)
chain=EGM-CUT

usage() { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }

pid_of() { "$engine" inspect --format '{{.State.Pid}}' "egm-$1"; }

address_of() {
  "$engine" inspect --format "{{(index .NetworkSettings.Networks \"$network\").IPAddress}}" "egm-$1"
}

connected() {
  "$engine" inspect --format '{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}' "egm-$1" | grep -qw "$network"
}

# Rules live in the network namespace of the node that is cut off, so nothing of this machine's own firewall changes.
inside() { local node=$1; shift; nsenter --target "$(pid_of "$node")" --net iptables -w "$@"; }

cut() {
  [ $# -ge 2 ] || usage
  command -v nsenter >/dev/null && command -v iptables >/dev/null || {
    echo "partition.sh: cut needs nsenter and iptables on this machine; use: partition.sh isolate $1" >&2; exit 3; }
  local node=$1 other address; shift
  inside "$node" -N "$chain" 2>/dev/null || true
  inside "$node" -C INPUT -j "$chain" 2>/dev/null || { inside "$node" -I INPUT -j "$chain"; inside "$node" -I OUTPUT -j "$chain"; }
  for other in "$@"; do
    address=$(address_of "$other")
    [ -n "$address" ] || { echo "partition.sh: $other has no address in $network" >&2; exit 3; }
    inside "$node" -A "$chain" -s "$address" -j DROP
    inside "$node" -A "$chain" -d "$address" -j DROP
    echo "cut $node | $other ($address)"
  done
}

heal() {
  local node
  for node in "${nodes[@]}"; do
    if ! connected "$node"; then
      "$engine" network connect --alias "$node" "$network" "egm-$node"
      echo "$node is back on $network"
    fi
    if inside "$node" -F "$chain" 2>/dev/null; then
      echo "no cuts at $node"
    fi
  done
}

status() {
  local node
  for node in "${nodes[@]}"; do
    if "$engine" exec "egm-$node" python /opt/compose/healthy.py 127.0.0.1:7445 2>/dev/null; then
      echo "$node ready"
    else
      echo "$node not ready"
    fi
  done
}

case "${1:-}" in
  isolate) [ $# = 2 ] || usage; "$engine" network disconnect "$network" "egm-$2"; echo "$2 is off $network" ;;
  cut) shift; cut "$@" ;;
  heal) heal ;;
  status) status ;;
  *) usage ;;
esac
