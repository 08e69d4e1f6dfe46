#!/usr/bin/env bash
# Pack what a machine without a network, which has Python 3.12 and torch, lacks to run mnist_ray: tools/pack_wheels.sh OUT_DIR
#
# Leaves in OUT_DIR parts of less than 64 MiB and install.sh, which joins and unpacks them there: install.sh FOLDER.
# The versions are those of requirements.txt, checked against its hashes. Left out: torch and what it brings, clients of
# object stores, the browser's part of Ray's dashboard, and Ray's jars. $PYTHON has pip (default: python3).
set -euo pipefail

out=${1:?"usage: tools/pack_wheels.sh OUT_DIR"}
python=${PYTHON:-python3}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
part_bytes=$((60 << 20))

mkdir -p "$out"
out=$(cd "$out" && pwd)
if [ -n "$(ls -A "$out")" ]; then
    echo "$out is not empty: name a new folder" >&2
    exit 2
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A line of requirements.txt and its hashes count if its marker holds for the machine that unpacks, not for this one.
"$python" - "$root/requirements.txt" >"$work/requirements.txt" <<'END'
import re
import sys

from pip._vendor.packaging.requirements import Requirement

LEFT_OUT = re.compile(
    r"torch|torchvision|triton|nvidia-.*|cuda-.*|aiobotocore|aioitertools|botocore|jmespath|s3fs|gcsfs|google-cloud-.*"
    r"|google-crc32c|google-resumable-media|google-auth-oauthlib|grpc-google-iam-v1|grpcio-status|requests-oauthlib|oauthlib"
)
TARGET = {
    "python_version": "3.12", "python_full_version": "3.12.0", "sys_platform": "linux", "platform_system": "Linux",
    "platform_machine": "x86_64", "os_name": "posix", "implementation_name": "cpython",
    "platform_python_implementation": "CPython", "extra": "",
}
with open(sys.argv[1], encoding="utf-8") as file:
    entries = re.findall(r"^\S.*(?:\n\s+.*)*", file.read(), re.MULTILINE)
for entry in entries:
    requirement, *hashes = re.split(r"\s*\\\n\s*", entry)
    parsed = Requirement(requirement)
    if not LEFT_OUT.fullmatch(parsed.name) and (parsed.marker is None or parsed.marker.evaluate(TARGET)):
        print(f"{parsed.name}{parsed.specifier}", *hashes)
END

echo "Downloading $(wc -l <"$work/requirements.txt") wheels"
platforms=()
for platform in manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux_2_5_x86_64 \
    manylinux1_x86_64; do
    platforms+=(--platform "$platform")
done
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: --no-compile \
    --python-version 3.12 --implementation cp "${platforms[@]}" --target "$work/packages" \
    --requirement "$work/requirements.txt"
rm -rf "$work/packages/ray/jars" "$work/packages/ray/dashboard/client" "$work/packages/bin"

echo "Compressing $(du -sm "$work/packages" | cut -f1) MB"
tar -C "$work/packages" -c . | xz -T2 -3 | split -b "$part_bytes" -d - "$out/packages.tar.xz."

cat >"$out/install.sh" <<'END'
#!/bin/sh
# Join the parts beside this script and unpack them: install.sh FOLDER; then PYTHONPATH=FOLDER python3.12 ...
set -eu
folder=${1:?"usage: install.sh FOLDER"}
mkdir -p "$folder"
cat "$(dirname "$0")"/packages.tar.xz.* | "${PYTHON:-python3}" -c '
import sys, tarfile
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|xz") as packages:
    packages.extractall(sys.argv[1])
' "$folder"
END
chmod +x "$out/install.sh"
ls -l "$out"
