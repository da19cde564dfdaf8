"""Checks the manifests of this folder: kinds of Kubernetes by its schemas, those of KServe, Trainer and the Gateway API
by their own packages. `make check-kubernetes` runs it in a virtual environment of its own, and checkov after it.

`python check.py OUT` renders every kustomization into the folder OUT and ends with 1 when something does not fit.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kserve
import kubernetes.client
import kubernetes_validate
import yaml
from kubeflow_trainer_api import models as trainer

HERE = Path(__file__).resolve().parent
RENDERED = ("overlays/cpu", "overlays/gpu", "overlays/tfserving", "overlays/kserve")
RENDERED += ("training/indexed-job", "training/trainjob")
# Both components on top of an overlay, as their heads say.
WITH_COMPONENTS = """
resources: [{overlay}]
components: [{here}/components/canary, {here}/components/object-storage]
images: [{{name: bookserve-model-server-canary, newName: bookserve-model-server, newTag: 0.2.0}}]
"""
KUBERNETES_VERSION = "1.37"
OTHERS = {  # kinds that Kubernetes does not have itself
    "ServingRuntime": "V1alpha1ServingRuntime",
    "InferenceService": "V1beta1InferenceService",
    "TrainJob": "TrainerV1alpha1TrainJob",
    "TrainingRuntime": "TrainerV1alpha1TrainingRuntime",
}
# The Gateway API's schemas are compiled into functions of JavaScript (npm: @kubernetes-models/gateway-api).
GATEWAY_API = """
const {readFileSync} = await import('node:fs')
const models = await import('@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1/index')
for (const document of JSON.parse(readFileSync(0))) new models[document.kind](document).validate()
"""


def render(folder: Path) -> str:
    """What `kubectl apply -k` would send."""
    command = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    done = subprocess.run([*command, folder], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{folder}: {done.stderr}")
    return done.stdout


def unknown(value: Any, kind: str, path: str) -> Iterator[str]:
    """Fields, and kinds of values, that the models of KServe and of Kubernetes do not have."""
    if inner := re.fullmatch(r"(?:list\[|dict[(\[]str, )(.*)[\])]", kind, re.IGNORECASE):
        values = enumerate(value) if isinstance(value, list) else value.items()
        for key, item in values:
            yield from unknown(item, inner[1], f"{path}.{key}")
    elif model := getattr(kserve, kind, None) or getattr(kubernetes.client, kind, None):
        if not isinstance(value, dict):
            yield f"{path}: {value!r} is not a {kind}"
            return
        fields = {name: model.openapi_types[attribute] for attribute, name in model.attribute_map.items()}
        for key, item in value.items():
            if key in fields:
                yield from unknown(item, fields[key], f"{path}.{key}")
            else:
                yield f"{path}: {kind} has no {key}"
    elif kind in ("str", "int", "bool", "float"):
        if type(value).__name__ != kind:
            yield f"{path}: {value!r} is not of type {kind}"
    elif kind != "object":
        yield f"{path}: nothing here knows the kind {kind}"


def dropped(given: Any, kept: Any, path: str) -> Iterator[str]:
    """Fields that did not survive being read by Trainer's models."""
    if isinstance(given, dict):
        for key, value in given.items():
            if not isinstance(kept, dict) or key not in kept:
                yield f"{path}: there is no {key}"
            else:
                yield from dropped(value, kept[key], f"{path}.{key}")
    elif isinstance(given, list):
        for place, value in enumerate(given):
            yield from dropped(value, kept[place], f"{path}.{place}")


def problems(document: dict[str, Any]) -> Iterator[str]:
    """What is wrong with one document of a kind that has a schema in Python."""
    kind = document["kind"]
    name = f"{kind} {document['metadata']['name']}"
    if kind in ("TrainJob", "TrainingRuntime"):
        read = getattr(trainer, OTHERS[kind]).from_dict(document)  # raises for wrong types
        yield from dropped(document, read.to_dict(), name)
    elif kind in OTHERS:
        yield from unknown(document, OTHERS[kind], name)
    else:
        try:
            kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{name}: {'.'.join(map(str, error.path))}: {error.message}"


def main() -> None:
    """Renders and checks all."""
    out = Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)
    both = out / "kustomization" / "kustomization.yaml"
    both.parent.mkdir(parents=True)
    # kustomize takes no absolute paths.
    here = Path(*[".."] * len(both.parent.resolve().parts[1:])) / str(HERE).lstrip("/")
    both.write_text(WITH_COMPONENTS.format(overlay=f"{here}/overlays/cpu", here=here))
    texts = {name.replace("/", "-"): render(HERE / name) for name in RENDERED}
    texts["overlays-cpu-components"] = render(both.parent)
    shutil.rmtree(both.parent)
    found: list[str] = []
    routes, counted = [], 0
    for name, text in texts.items():
        (out / f"{name}.yaml").write_text(text)
        for document in yaml.safe_load_all(text):
            counted += 1
            if document["apiVersion"].startswith("gateway.networking.k8s.io/"):
                routes.append(document)
            else:
                found += [f"{name}: {problem}" for problem in problems(document)]
    done = subprocess.run(
        ["node", "--input-type=module", "--eval", GATEWAY_API],
        input=json.dumps(routes),
        capture_output=True,
        text=True,
        cwd=sys.prefix,  # where `make` put the packages of npm
    )
    if done.returncode:
        found.append(done.stderr)
    if found:
        sys.exit("\n".join(found))
    sys.stdout.write(
        f"{counted} documents of {len(texts)} kustomizations fit their schemas, {len(routes)} of the Gateway API\n"
    )


if __name__ == "__main__":
    main()
