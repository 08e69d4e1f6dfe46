#!/usr/bin/env bash
# A Ray head on this machine, with a token that is made if there is none.
#
#   cluster/machines/head.sh [OPTION...]        options go to `ray start`: --num-cpus=0 for a head without work
#
# Jobs are submitted on this machine, or through a tunnel: ssh -N -L 8265:127.0.0.1:8265 HEAD
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

if [[ ! -s $TOKEN_FILE ]]; then
    mkdir -p "$(dirname "$TOKEN_FILE")"
    (umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$TOKEN_FILE")
    echo "A token was made in $TOKEN_FILE: copy it to the same path on every machine that joins or submits."
fi
chmod 600 "$TOKEN_FILE"

exec ray start --head --port="$PORT_BASE" --dashboard-host=127.0.0.1 --dashboard-port="$DASHBOARD_PORT" \
    --ray-client-server-port="$CLIENT_PORT" "${PORTS[@]}" "$@"
