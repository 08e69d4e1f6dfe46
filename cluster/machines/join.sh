#!/usr/bin/env bash
# This machine joins the cluster of a head that head.sh started.
#
#   cluster/machines/join.sh HEAD[:PORT] [OPTION...]        options go to `ray start`
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

head=${1:-}
[[ -n $head && $head != -* ]] || fail "name the head: join.sh HEAD[:PORT]"
shift
[[ -s $TOKEN_FILE ]] || fail "$TOKEN_FILE is not there: copy it from the head (scp HEAD:.ray/auth_token $TOKEN_FILE)"
chmod 600 "$TOKEN_FILE"
[[ $head == *:* ]] || head=$head:6379

# This machine's address on the way to the head. Ray takes the one on the way to 8.8.8.8, which many clusters lack.
own=$(python -c 'import socket, sys
probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
probe.connect((sys.argv[1], 9))
print(probe.getsockname()[0])' "${head%:*}" 2>/dev/null) || fail "$head: there is no way to this machine: name its address"

exec ray start --address="$head" --node-ip-address="$own" "${PORTS[@]}" "$@"
