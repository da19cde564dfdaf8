#!/bin/sh
# What the images hold: dist/sbom-IMAGE.json (CycloneDX) and dist/licences-IMAGE.md, from the packages that
# docker/Dockerfile installs, without building an image. Debian's packages of the base image are not in them.
# `sh docker/sbom.sh training` makes those of one image; `make sbom` those of all that need no GPU.
set -eu
cd "$(dirname "$0")/.."
UV=.venv/bin/uv
TOOLS=.venv-sbom
test -x $TOOLS/bin/cyclonedx-py || python3 -m venv $TOOLS
$TOOLS/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0 pip-licenses==5.5.5
mkdir -p dist

for image in ${*:-model-server gateway training}; do
    packages=$TOOLS/$image
    rm -rf "$packages"
    $UV venv --quiet "$packages"
    case $image in
        model-server) set -- --excludes docker/model-server.excludes --extra serving --extra buckets --extra telemetry --extra heic ;;
        gateway) set -- --excludes docker/gateway.excludes --extra serving --extra buckets --extra telemetry --extra heic ;;
        training) set -- --extra training --extra buckets ;;
        *) echo "no such image: $image (model-server, gateway or training)" >&2; exit 2 ;;
    esac
    $UV pip install --quiet --python "$packages/bin/python" --require-hashes -c requirements.lock -r pyproject.toml "$@"
    $TOOLS/bin/cyclonedx-py environment --output-reproducible --output-file "dist/sbom-$image.json" "$packages/bin/python"
    $TOOLS/bin/pip-licenses --python="$packages/bin/python" --format=markdown --with-system --order=license \
        > "dist/licences-$image.md"
    echo "dist/sbom-$image.json, dist/licences-$image.md: $(($(wc -l < "dist/licences-$image.md") - 2)) packages"
done
