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

exec ray start --address="$head" "${PORTS[@]}" "$@"
