"""cluster.yaml is never started by a test; Ray's own schema and its own reading of the file stand in for the cloud."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jobs.cluster import cause_of, ray_session

REPOSITORY = Path(__file__).parents[2]
FILE = REPOSITORY / "cluster.yaml"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def prepared(cluster: dict[str, Any]) -> dict[str, Any]:
    """The configuration as `ray up` completes it."""
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(cluster)


def test_fits_rays_schema(cluster: dict[str, Any], prepared: dict[str, Any]) -> None:
    import ray.autoscaler
    from ray.autoscaler._private.util import validate_config

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    validate_config(prepared)
    with pytest.raises(jsonschema.ValidationError):  # the schema does refuse what it does not know
        jsonschema.validate({**cluster, "num_workers": 3}, schema)


def test_only_the_head_is_on_demand(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    on_demand = {
        name
        for name, node in types.items()
        if node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") != "spot"
    }
    assert on_demand == {cluster["head_node_type"]}
    assert types[cluster["head_node_type"]]["resources"]["CPU"] == 0


def test_every_pool_shrinks_to_nothing_and_grows(cluster: dict[str, Any], prepared: dict[str, Any]) -> None:
    pools = {name: node for name, node in prepared["available_node_types"].items() if name != cluster["head_node_type"]}
    assert set(pools) == {"cpu", "gpu-spot"}
    for node in pools.values():
        assert node["min_workers"] == 0 < node["max_workers"]
    assert sum(node["max_workers"] for node in pools.values()) <= prepared["max_workers"]


def test_gpu_pool_alone_installs_vllm(prepared: dict[str, Any]) -> None:
    installs = {
        name: any("[vllm]" in command for command in node.get("worker_setup_commands", []))
        for name, node in prepared["available_node_types"].items()
    }
    assert installs == {"head": False, "cpu": False, "gpu-spot": True}


def test_every_ray_process_asks_for_the_token(cluster: dict[str, Any]) -> None:
    commands = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray " in command for command in commands)
    assert "RAY_AUTH_TOKEN" not in FILE.read_text()  # the token itself goes by file
    home = "/home/ray"
    assert cluster["file_mounts"][f"{home}/.ray/auth_token"] == "~/.ray/auth_token"


def test_nothing_listens_to_the_world(cluster: dict[str, Any]) -> None:
    assert "IpPermissions" not in cluster["provider"]["security_group"]
    (head,) = [command for command in cluster["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in head and "0.0.0.0" not in FILE.read_text()
    assert "--ray-client-server-port" not in head


def test_image_has_the_same_minor_version_of_ray(cluster: dict[str, Any]) -> None:
    import ray

    minor = ray.__version__.rpartition(".")[0]
    assert cluster["docker"]["image"].startswith(f"rayproject/ray:{minor}.")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("Traceback:\n  somewhere\nValueError: no such thing\n", "ValueError: no such thing"),
        ("5 worker(s) were killed due to the node running low on memory. 22 GB\nRefer to the manual", "a node that ran low on"),
        ("", "RuntimeError"),
        ("x " * 1000, "x x x"),
    ],
)  # fmt: skip
def test_cause_in_short(error: str, expected: str) -> None:
    cause = cause_of(RuntimeError(error))
    assert cause.startswith(expected) and len(cause) <= 300 and "\n" not in cause


def test_sigterm_is_answered_after_a_session_as_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray installs a handler of its own and leaves it there: a lease would be held until it runs out."""
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0")  # none is left behind
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: signal.signal(signal.SIGTERM, lambda *_: None))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    with ray_session():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


STARTS = """
import subprocess
import sys
from jobs.cluster import ray_session
with ray_session():
    import ray
    ray.get(ray.remote(lambda: print("from a worker")).remote())
    address = ray.get_runtime_context().gcs_address
    comes = f"import ray; ray.init(address='{address}', logging_level=40); print('came in')"
    for token in (None, "0" * 64):
        environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
        command = ["env", "-u", "RAY_AUTH_TOKEN", *(f"{k}={v}" for k, v in environment.items()), sys.executable, "-c", comes]
        done = subprocess.run(command, capture_output=True, text=True)
        print(done.stdout or "was refused", flush=True, file=sys.__stdout__)
"""


@pytest.mark.integration
@pytest.mark.slow
def test_a_stranger_does_not_come_in(tmp_path: Path) -> None:
    """Ray listens on all interfaces; nobody else on the network may use one that we start. Standard output stays ours."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_AUTH", "RAY_ADDRESS"))}
    environment["HOME"] = str(tmp_path / "nowhere")
    done = subprocess.run(
        [sys.executable, "-c", STARTS], env=environment, capture_output=True, text=True, cwd=REPOSITORY, timeout=300
    )
    assert done.stdout == "was refused\n" * 2, done.stderr
    assert "from a worker" in done.stderr
    assert "oken" not in done.stderr and not (tmp_path / "nowhere").exists()
