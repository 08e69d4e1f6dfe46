#!/usr/bin/env bash
# One node of the job's Ray: runs a command, and removes the node's temporary folder when the command has ended.
#
#   cluster/slurm/node.sh FOLDER COMMAND...
set -euo pipefail

temporary=$1
shift
rm -rf "${temporary%-*}"-* # of earlier starts of this job that Slurm killed
trap 'kill -TERM "$ray" 2>/dev/null || true' TERM
"$@" &
ray=$!
code=0
while kill -0 "$ray" 2>/dev/null; do wait "$ray" || true; done
wait "$ray" || code=$?
rm -rf "$temporary" 2>/dev/null || { sleep 2; rm -rf "$temporary"; } # the last of Ray's processes may still write
exit $code
