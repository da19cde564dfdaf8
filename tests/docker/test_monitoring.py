"""docker/monitoring: promtool's checks of rules and alerts, and Prometheus itself over a real model server and gateway
under load, where each query of the dashboard returns data. It needs Debian's package `prometheus`.
"""

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml

from bookserve.serving.server.observability.metric_families import FAMILIES
from gateway_pages import gateway
from load import REST_BODY, REST_PATH, predict_request
from model_servers import Server, answers, free_port, server_starter, wait_until, write_scale_model

MONITORING = Path(__file__).resolve().parents[2] / "docker" / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana" / "dashboards" / "bookserve.json").read_text())
PROMTOOL, PROMETHEUS = shutil.which("promtool"), shutil.which("prometheus")
needs_prometheus = pytest.mark.skipif(
    not (PROMTOOL and PROMETHEUS), reason="Prometheus is not installed (Debian: prometheus)"
)
QUERIES = {
    f"{panel['title']}: {target['expr']}": target["expr"].replace("$model", ".*")
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}


@needs_prometheus
@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yaml"), ("test", "rules", "alerts_test.yaml")],
    ids=["config", "alerts"],
)
def test_promtool_finds_nothing(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [str(PROMTOOL), *arguments], cwd=MONITORING / "prometheus", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def expressions() -> Iterator[str]:
    yield from QUERIES.values()
    for name in ("recording", "alerts"):
        for group in yaml.safe_load((MONITORING / "prometheus" / f"{name}.yaml").read_text())["groups"]:
            yield from (rule["expr"] for rule in group["rules"])


def test_every_metric_that_is_asked_for_exists() -> None:
    recording = yaml.safe_load((MONITORING / "prometheus" / "recording.yaml").read_text())
    recorded = {rule["record"] for group in recording["groups"] for rule in group["rules"]}
    families = {family.name.replace("/", ":") for family in FAMILIES}
    asked = {name for text in expressions() for name in re.findall(r"(?<![\w\"]):?[a-z]\w*(?::\w+)+", text)}
    assert len(asked) > 15
    assert {name.removesuffix("_bucket") for name in asked} <= families | recorded


def test_every_alert_is_tested_and_has_a_text() -> None:
    groups = yaml.safe_load((MONITORING / "prometheus" / "alerts.yaml").read_text())["groups"]
    tests = yaml.safe_load((MONITORING / "prometheus" / "alerts_test.yaml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test.get("alert_rule_test", ()) if case["exp_alerts"]}
    assert {rule["alert"] for group in groups for rule in group["rules"]} == fired
    assert all(rule["annotations"]["summary"] for group in groups for rule in group["rules"])


@contextmanager
def prometheus(folder: Path, targets: dict[str, int]) -> Iterator[str]:
    """Prometheus with the project's rules, that looks at each port of loopback every half a second: its URL."""
    config = yaml.safe_load((MONITORING / "prometheus" / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    config["rule_files"] = [str(MONITORING / "prometheus" / name) for name in config["rule_files"]]
    config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] in targets]
    for job in config["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{targets[job['job_name']]}"]}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                str(PROMETHEUS),
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/-/ready"), "Prometheus is ready")
        yield url
    finally:
        process.terminate()
        process.wait(20)


def values(url: str, query: str) -> list[float]:
    """What a query answers now, NaN left out."""
    with urllib.request.urlopen(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}", timeout=10) as got:
        answer: dict[str, Any] = json.load(got)
    assert answer["status"] == "success", answer
    return [number for one in answer["data"]["result"] if not np.isnan(number := float(one["value"][1]))]


def ask_everything(server: Server, page: str) -> None:
    """A request each way, and a mistake."""
    urllib.request.urlopen(urllib.request.Request(server.url + REST_PATH, REST_BODY), timeout=10).close()
    body = urllib.request.Request(f"{page}/api/v1/scale", REST_BODY, {"Content-Type": "application/json"})
    urllib.request.urlopen(body, timeout=10).close()
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(server.url + REST_PATH, b"{"), timeout=10)
    caught.value.close()
    with grpc.insecure_channel(server.target) as channel:
        channel.unary_unary("/tensorflow.serving.PredictionService/Predict")(predict_request(), timeout=10)
        with pytest.raises(grpc.RpcError):  # refused by the transport
            channel.unary_unary("/no.such/Method")(b"", timeout=10)


@pytest.mark.slow
@needs_prometheus
def test_each_query_of_the_dashboard_returns_data_after_load(tmp_path: Path) -> None:
    store = tmp_path / "models"
    write_scale_model(store / "scale", 1, 1.0)
    with server_starter(tmp_path) as start:
        server = start(f"--model_root={store}", "--enable_metrics")
        with (
            gateway(server.target, tmp_path, "--log-level=error") as page,
            prometheus(tmp_path, {"model-server": server.rest_port, "gateway": int(page.rpartition(":")[2])}) as url,
        ):
            write_scale_model(store / "scale", 2, 2.0)  # a swap
            missing = set(QUERIES)
            end = time.monotonic() + 90
            while missing and time.monotonic() < end:
                ask_everything(server, page)
                missing = {name for name in missing if not values(url, QUERIES[name])}
            assert not missing
            wait_until(lambda: max(values(url, "model:requests:rate1m")) > 0, "a rate above nothing")
            wait_until(lambda: sum(values(url, "instance:loads:increase5m")) > 0, "the swap is seen", seconds=60)
            assert min(values(url, ":bookserve:resident_bytes")) > 20e6
            assert min(values(url, 'up{job=~"model-server|gateway"}')) == 1
