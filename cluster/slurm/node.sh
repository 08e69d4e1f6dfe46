#!/usr/bin/env bash
# One node of the job's Ray: runs a command, and removes the node's temporary folder when the command has ended.
#
#   cluster/slurm/node.sh FOLDER COMMAND...
set -euo pipefail

temporary=$1
shift
# Earlier jobs of this user, and earlier starts of this job, that Slurm killed before they could tidy up.
if jobs=$(squeue --noheader --me --format=%A); then
    for folder in /tmp/mnist-ray-*-*; do
        number=${folder#/tmp/mnist-ray-} && number=${number%-*}
        [[ $number =~ ^[0-9]+$ && -O $folder ]] || continue
        [[ $number != "$SLURM_JOB_ID" ]] && grep -qx "$number" <<<"$jobs" || rm -rf "$folder"
    done
fi
trap 'kill -TERM "$ray" 2>/dev/null || true' TERM
"$@" &
ray=$!
code=0
while kill -0 "$ray" 2>/dev/null; do wait "$ray" || true; done
wait "$ray" || code=$?
rm -rf "$temporary" 2>/dev/null || { sleep 2; rm -rf "$temporary"; } # the last of Ray's processes may still write
exit $code
