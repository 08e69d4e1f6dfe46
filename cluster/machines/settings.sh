# What head.sh and join.sh share; sourced by them. Each value can be set from outside.

export RAY_AUTH_MODE=token # Ray runs code for whoever reaches its ports: only holders of the token get in
export RAY_USAGE_STATS_ENABLED=0
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0

TOKEN_FILE=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}

# Every port that a node listens on, so that a firewall can be told: PORT_BASE to PORT_BASE + 6, and those of workers.
PORT_BASE=${PORT_BASE:-6379}
WORKER_PORTS=${WORKER_PORTS:-10002-10201}
DASHBOARD_PORT=${DASHBOARD_PORT:-8265} # on loopback of the head alone

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
