"""docker/compose.yaml and docker/Dockerfile, read: what is started is confined, has a version, and is asked for with
options that exist. `make test-containers` runs them.
"""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from bookserve.serving.gateway.main import main as gateway
from bookserve.serving.server.settings.flags import parse
from model_servers import server_starter, write_scale_model

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROFILES = ("cpu", "gpu", "tfserving", "train", "monitoring", "proxy")


def plain(text: str) -> str:
    """A value as compose makes it where no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_the_profiles_are_those_of_the_makefile_and_the_readme() -> None:
    assert {profile for service in SERVICES.values() for profile in service["profiles"]} == set(PROFILES)
    makefile = (ROOT / "Makefile").read_text()
    found = re.search(r"^PROFILES +:= (.*)$", makefile, re.MULTILINE)
    assert found is not None
    assert set(found[1].split()) == set(PROFILES)
    readme = (ROOT / "docker" / "README.md").read_text()
    assert all(f"| `{profile}` |" in readme for profile in PROFILES)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined_and_its_image_has_a_version(name: str) -> None:
    service = SERVICES[name]
    image = plain(service["image"])
    assert re.search(r":v?\d|:dev$", image), image
    assert "mem_limit" in service
    for port in service.get("ports", ()):
        assert plain(port).startswith("127.0.0.1:")
    if "tensorflow/serving" not in image:
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", ["model-server", "model-server-gpu", "replica-one", "replica-two"])
def test_the_flags_of_the_model_servers_exist(name: str) -> None:
    flags, warnings = parse(SERVICES[name]["command"])
    assert warnings == []
    assert flags.enable_metrics, "Prometheus and the gateway's page need them"
    assert flags.enable_grpc_healthcheck_service, "the proxy asks it"


@pytest.mark.parametrize("name", ["gateway", "gateway-gpu", "replica-gateway"])
def test_the_options_of_the_gateways_exist_and_name_the_model_servers_rest(name: str, tmp_path: Path) -> None:
    arguments = [plain(argument).replace("=/models", f"={tmp_path}") for argument in SERVICES[name]["command"]]
    with gateway.make_context("gateway", arguments) as context:
        host = context.params["model_server"].removesuffix(":8500")
        assert context.params["model_server_rest"] == f"http://{host}:8501"
        aliases = {
            alias
            for service in SERVICES.values()
            for alias in service.get("networks", {}).get("default", {}).get("aliases", ())
        }
        assert host in SERVICES.keys() | aliases


def test_what_is_mounted_from_this_folder_is_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = plain(volume).partition(":")[0]
            if source.startswith("./"):
                assert (ROOT / "docker" / source).is_dir(), source
                assert volume.endswith(":ro"), volume


@pytest.mark.parametrize("profile", PROFILES)
def test_make_up_starts_a_profile_and_leaves_the_trainings_profile_alone(profile: str) -> None:
    printed = subprocess.run(
        ["make", "--dry-run", "up", f"PROFILE={profile} monitoring", "COMPOSE=docker compose"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"PROFILE=default docker compose -p bookserve -f docker/compose.yaml --profile {profile}" in printed


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
def test_docker_compose_accepts_every_profile(profile: str) -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("docker-compose is not installed")
    done = subprocess.run(
        ["docker-compose", "--file=docker/compose.yaml", f"--profile={profile}", "config"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_every_image_of_ours_has_labels_and_buckets_where_stores_are_read() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    stages = {part.split()[3]: part for part in re.split(r"(?m)^(?=FROM )", text) if part.startswith("FROM")}
    for target in ("model-server", "gateway", "training", "model-server-gpu", "training-gpu"):
        for label in ("title", "version", "revision", "licenses"):
            assert f"org.opencontainers.image.{label}=" in stages[target], target
    for target in ("model-server", "gateway", "training", "model-server-gpu", "training-gpu"):
        assert "--extra buckets" in stages[f"{target}-packages"], target


@pytest.mark.parametrize(
    ("image", "programs"),
    [
        ("model-server", ("bookserve.serving.server.model_server", "bookserve.serving.server.worker_main")),
        ("gateway", ("bookserve.serving.gateway.main",)),
    ],
)
def test_a_server_starts_without_the_packages_that_its_image_leaves_out(image: str, programs: tuple[str, ...]) -> None:
    lines = (ROOT / "docker" / f"{image}.excludes").read_text().splitlines()
    left_out = {line for line in lines if line and not line.startswith("#")}
    modules = {
        module
        for module, names in packages_distributions().items()
        if left_out & {name.lower().replace("_", "-") for name in names}
    }
    assert len(modules) >= len(left_out), modules
    code = f"import sys; sys.modules.update(dict.fromkeys({sorted(modules)})); import {', '.join(programs)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_development_certificates_serve_tls_and_mutual_tls(tmp_path: Path) -> None:
    folder = tmp_path / "certificates"
    subprocess.run([sys.executable, "docker/certificates.py", folder], cwd=ROOT, check=True)
    names = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes()).extensions
    hosts = names.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    assert {"localhost", "model-server", "proxy"} <= set(hosts)
    write_scale_model(tmp_path / "store" / "scale", 1, 2.0)
    with server_starter(tmp_path) as start:
        server = start(
            f"--model_root={tmp_path / 'store'}", f"--rest_ssl_config_file={folder / 'mutual-tls.config'}", wait=False
        )
        ask = ["curl", "--silent", "--fail", "--retry", "60", "--retry-delay", "1", "--retry-connrefused"]
        ask += ["--cacert", str(folder / "ca.pem"), f"https://localhost:{server.rest_port}/v1/models/scale"]
        shown = ["--cert", str(folder / "client.pem"), "--key", str(folder / "client.key")]
        done = subprocess.run([*ask, *shown], capture_output=True, text=True, timeout=100)
        assert json.loads(done.stdout)["model_version_status"][0]["state"] == "AVAILABLE", done.stderr
        refused = subprocess.run(ask, capture_output=True, text=True, timeout=100)
        assert refused.returncode != 0, "no certificate was shown"


def test_the_images_for_gpus_have_the_onnx_runtime_of_the_others() -> None:
    cpu = re.search(r"^onnxruntime==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    gpu = re.search(r"^onnxruntime-gpu==(\S+)", (ROOT / "docker/model-server-gpu.lock").read_text(), re.MULTILINE)
    assert cpu is not None
    assert gpu is not None
    assert cpu[1] == gpu[1]
