# What head.sh and join.sh share; sourced by them. Each value can be set from outside.

export RAY_AUTH_MODE=token # Ray runs code for everybody who reaches its ports: a token is required
export RAY_USAGE_STATS_ENABLED=0
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0

# Metrics for Prometheus are off, because everybody could read them. METRICS=1 turns them on; a firewall then has to let
# Prometheus alone reach PORT_BASE + 6. Two of the three exporters have no switch; an impossible port keeps them from
# listening (their log says so once).
if [[ ${METRICS:-0} != 1 ]]; then
    export RAY_enable_metrics_collection=0 AUTOSCALER_METRIC_PORT=-1 DASHBOARD_METRIC_PORT=-1
fi

TOKEN_FILE=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}

# Every port of Ray's on which nodes reach one another: PORT_BASE to PORT_BASE + 5, and those of workers. The ranks of a
# retraining meet at further ones, which torch takes from the system's range (net.ipv4.ip_local_port_range). A firewall
# has to let the cluster's machines reach one another at all of these, and no other machine at any: torch has no token, and
# one call without a token ends Ray's own processes (tools/cluster_network).
PORT_BASE=${PORT_BASE:-6379}
WORKER_PORTS=${WORKER_PORTS:-10002-10201}
DASHBOARD_PORT=${DASHBOARD_PORT:-8265} # on loopback of the head alone
CLIENT_PORT=${CLIENT_PORT:-10001}      # Ray Client's server on the head: not needed, but Ray starts it anyway

PORTS=(
    "--node-manager-port=$((PORT_BASE + 1))"
    "--object-manager-port=$((PORT_BASE + 2))"
    "--runtime-env-agent-port=$((PORT_BASE + 3))"
    "--dashboard-agent-grpc-port=$((PORT_BASE + 4))"
    "--dashboard-agent-listen-port=$((PORT_BASE + 5))"
    "--metrics-export-port=$((PORT_BASE + 6))"
    "--min-worker-port=${WORKER_PORTS%-*}"
    "--max-worker-port=${WORKER_PORTS#*-}"
)

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

command -v ray >/dev/null || fail "there is no 'ray' on the path: install requirements.txt and activate its environment"
