#!/bin/sh
# Pins what the images of the GPU have besides requirements.lock, with hashes: run it after every `make lock`.
set -eu
cd "$(dirname "$0")/.."

relock() { # FILE REQUIREMENT
    printf '%s\n' "$2" | .venv/bin/uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --generate-hashes --no-emit-index-url --no-annotate --no-header -c requirements.lock -o "docker/$1" -
}
relock training-gpu.lock 'tensorflow[and-cuda]>=2.20'
relock model-server-gpu.lock 'onnxruntime-gpu[cuda,cudnn]>=1.23'
