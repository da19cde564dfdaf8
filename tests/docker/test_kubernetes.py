"""docker/kubernetes rendered as `kubectl apply -k` would: its parts name each other rightly, and the commands of its
containers are commands of this project. Schemas and policies are `make check-kubernetes`.
"""

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import yaml
from tritonclient.grpc import InferenceServerClient, InferInput

from bookserve.serving.gateway.main import main as gateway
from bookserve.serving.server.observability.metric_families import FAMILIES
from bookserve.serving.server.settings.flags import parse
from model_servers import answers, server_starter, write_scale_model

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "docker" / "kubernetes"
OVERLAYS = ("cpu", "gpu", "tfserving", "kserve")
FOLDERS = (*(f"overlays/{name}" for name in OVERLAYS), "training/indexed-job", "training/trainjob")
POD_KINDS = ("Deployment", "Job")
Document = dict[str, Any]

kustomize = next((path for path in (shutil.which("kustomize"), shutil.which("kubectl")) if path), "")
pytestmark = pytest.mark.skipif(not kustomize, reason="neither kustomize nor kubectl is installed")


@cache
def rendered(folder: str) -> tuple[Document, ...]:
    """The documents of a kustomization."""
    command = [kustomize, "build" if Path(kustomize).name == "kustomize" else "kustomize"]
    done = subprocess.run([*command, KUBERNETES / folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def of(folder: str, *kinds: str) -> dict[str, Document]:
    return {document["metadata"]["name"]: document for document in rendered(folder) if document["kind"] in kinds}


def pods(folder: str) -> Iterator[tuple[str, Document, Document]]:
    """Name, labels and spec of every pod template."""
    for name, document in of(folder, *POD_KINDS).items():
        template = document["spec"]["template"]
        yield name, template["metadata"]["labels"], template["spec"]
    for name, document in of(folder, "ServingRuntime").items():
        yield name, {}, document["spec"]
    for name, document in of(folder, "TrainingRuntime").items():
        for job in document["spec"]["template"]["spec"]["replicatedJobs"]:
            template = job["template"]["spec"]["template"]
            yield name, template["metadata"]["labels"], template["spec"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_pod_is_confined_and_every_image_has_a_version(folder: str) -> None:
    assert {document["metadata"].get("namespace") for document in rendered(folder)} <= {"bookserve", None}
    seen = 0
    for name, _, spec in pods(folder):
        for container in spec["containers"]:
            seen += 1
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"], name
            assert not security["allowPrivilegeEscalation"], name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
            assert (security | spec.get("securityContext", {}))["runAsUser"] == 10001, name
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}, name
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in spec["volumes"]}, name
            _, _, tag = container["image"].rpartition("/")[2].partition(":")
            assert re.match(r"\d+\.\d+", tag), container["image"]
    assert seen


def model_server_arguments(folder: str) -> Iterator[list[str]]:
    for _, _, spec in pods(folder):
        for container in spec["containers"]:
            if "bookserve-model-server" in container["image"]:
                yield container["args"]


@pytest.mark.parametrize("folder", ["overlays/cpu", "overlays/gpu", "overlays/kserve"])
def test_the_flags_of_every_model_server_are_its_flags(folder: str) -> None:
    found = list(model_server_arguments(folder))
    assert found
    for arguments in found:
        parse([argument.replace("{{.Name}}", "mnist") for argument in arguments])


def test_the_options_of_the_gateway_are_its_options(tmp_path: Path) -> None:
    deployment = of("overlays/cpu", "Deployment")["bookserve-gateway"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    arguments = [argument.replace("=/models", f"={tmp_path}") for argument in container["args"]]
    with gateway.make_context("gateway", arguments) as context:
        assert isinstance(context, click.Context)
        services = of("overlays/cpu", "Service")
        host = context.params["model_server"].partition(":")[0]
        assert services[host]["spec"]["clusterIP"] == "None", "only a headless Service gives all addresses"
        assert context.params["model_server_rest"].removeprefix("http://").partition(":")[0] in services


@pytest.mark.parametrize("folder", ["overlays/cpu", "overlays/gpu", "overlays/tfserving", "training/indexed-job"])
def test_services_budgets_and_scalers_find_their_pods(folder: str) -> None:
    templates = [(labels, spec) for _, labels, spec in pods(folder)]
    for name, service in of(folder, "Service").items():
        selector = service["spec"]["selector"]
        if "batch.kubernetes.io/job-name" in selector:  # a label that Kubernetes adds
            assert selector["batch.kubernetes.io/job-name"] in of(folder, "Job")
            continue
        chosen = [spec for labels, spec in templates if selector.items() <= labels.items()]
        assert chosen, name
        ports = {port["name"] for spec in chosen for port in spec["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports, name
    for name, budget in of(folder, "PodDisruptionBudget").items():
        selector = budget["spec"]["selector"]["matchLabels"]
        assert any(selector.items() <= labels.items() for labels, _ in templates), name
    for name, scaler in of(folder, "HorizontalPodAutoscaler").items():
        assert scaler["spec"]["scaleTargetRef"]["name"] in of(folder, "Deployment"), name
        assert scaler["spec"]["minReplicas"] >= 2, "a budget of one pod away needs another one"


@pytest.mark.parametrize("folder", ["overlays/cpu"])
def test_routes_lead_to_ports_of_services(folder: str) -> None:
    services = of(folder, "Service")
    routes = of(folder, "HTTPRoute", "GRPCRoute")
    assert len(routes) == 3
    for route in routes.values():
        for rule in route["spec"]["rules"]:
            for target in rule["backendRefs"]:
                assert target["port"] in {port["port"] for port in services[target["name"]]["spec"]["ports"]}


def test_the_autoscaler_asks_for_a_metric_that_the_server_has() -> None:
    (metric,) = of("overlays/cpu", "HorizontalPodAutoscaler")["bookserve-model-server"]["spec"]["metrics"]
    (rule,) = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    (source,) = set(re.findall(r'__name__="([^"]+)"', rule["seriesQuery"] + rule["metricsQuery"]))
    assert source in {family.name.replace("/", ":") for family in FAMILIES}
    assert rule["name"]["matches"] == f"^{source}$"


def tf_config(container: Document, index: int) -> dict[str, Any]:
    variables = {variable["name"]: variable for variable in container["env"]}
    assert list(variables) == ["INDEX", "TF_CONFIG"], "INDEX must stand before what names it"
    assert "job-completion-index" in variables["INDEX"]["valueFrom"]["fieldRef"]["fieldPath"]
    config: dict[str, Any] = json.loads(variables["TF_CONFIG"]["value"].replace("$(INDEX)", str(index)))
    return config


def test_the_hosts_of_the_indexed_job_are_its_pods() -> None:
    job = of("training/indexed-job", "Job")["train"]
    spec = job["spec"]["template"]["spec"]
    assert job["spec"]["completionMode"] == "Indexed"
    hosts = [f"train-{index}.{spec['subdomain']}:2222" for index in range(job["spec"]["completions"])]
    assert spec["subdomain"] in of("training/indexed-job", "Service")
    config = tf_config(spec["containers"][0], 1)
    assert config == {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": 1}}


def test_the_hosts_of_the_trainjob_are_its_pods() -> None:
    ((name, train_job),) = of("training/trainjob", "TrainJob").items()
    ((runtime_name, runtime),) = of("training/trainjob", "TrainingRuntime").items()
    assert train_job["spec"]["runtimeRef"]["name"] == runtime_name
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    config = tf_config(job["template"]["spec"]["template"]["spec"]["containers"][0], 0)
    nodes = train_job["spec"]["trainer"]["numNodes"]
    assert config["cluster"]["worker"] == [f"{name}-{job['name']}-0-{index}.{name}:2222" for index in range(nodes)]


def test_the_canary_is_the_stable_deployment_under_another_name() -> None:
    base = list(yaml.safe_load_all((KUBERNETES / "base" / "model-server.yaml").read_text()))
    canary = list(yaml.safe_load_all((KUBERNETES / "components" / "canary" / "canary.yaml").read_text()))
    assert canary[0]["spec"].pop("replicas") == 1
    for stable, other in zip(base, canary, strict=False):
        text = json.dumps(other).replace('"bookserve/track": "canary"', '"bookserve/track": "stable"')
        text = text.replace('"name": "bookserve-model-server-canary"', '"name": "bookserve-model-server"')
        text = text.replace('"image": "bookserve-model-server-canary"', '"image": "bookserve-model-server"')
        assert json.loads(text) == stable


@pytest.mark.parametrize("runtime", ["bookserve", "bookserve-grpc", "bookserve-store"])
def test_a_serving_runtime_of_kserve_answers_the_protocols_that_it_declares(runtime: str, tmp_path: Path) -> None:
    """Run as KServe runs it: the storage is mounted where it mounts it, and the name is the InferenceService's."""
    spec = of("overlays/kserve", "ServingRuntime")[runtime]["spec"]
    services = [
        document["spec"]["predictor"]["model"]
        for document in of("overlays/kserve", "InferenceService").values()
        if document["spec"]["predictor"]["model"]["runtime"] == runtime
    ]
    assert services
    assert {service["protocolVersion"] for service in services} <= set(spec["protocolVersions"])
    formats = {supported["name"] for supported in spec["supportedModelFormats"]}
    assert {service["modelFormat"]["name"] for service in services} <= formats
    (container,) = spec["containers"]
    mounted = tmp_path / "mnist" if "--model_base_path=/mnt/models" in container["args"] else tmp_path
    write_scale_model(tmp_path / "mnist", 1, 2.0)
    arguments = [
        argument.replace("{{.Name}}", "mnist").replace("/mnt/models", str(mounted)) for argument in container["args"]
    ]
    with server_starter(tmp_path) as start:
        ours = [argument for argument in arguments if not argument.startswith(("--port=", "--rest_api_port="))]
        server = start(*ours)
        x = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
        if {"v1", "v2"} <= set(spec["protocolVersions"]):
            v1 = asked(f"{server.url}/v1/models/mnist:predict", {"instances": [[1, 2, 3]]})
            assert v1["predictions"] == [[2, 4, 6]]
            v2 = asked(f"{server.url}/v2/models/mnist/infer", {"inputs": [x]})
            assert v2["outputs"][0]["data"] == [2, 4, 6]
        else:
            with InferenceServerClient(server.target) as client:
                tensor = InferInput("x", [1, 3], "FP32")
                tensor.set_data_from_numpy(np.float32([[1, 2, 3]]))
                assert client.infer("mnist", [tensor]).as_numpy("y").tolist() == [[2, 4, 6]]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert answers(f"{server.url}{container[probe]['httpGet']['path']}")


def asked(url: str, body: Document) -> Document:
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=20) as response:
        answer: Document = json.load(response)
    return answer


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_schemas_and_policies_hold() -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    done = subprocess.run(["make", "check-kubernetes"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "documents of 7 kustomizations fit their schemas" in done.stdout
