"""What `zerogr serve` reads and refuses before it starts anything."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from serve.config_file import load_serve_config
from serve.run import ON_CPUS, _num_threads, _size_searchers, serve_index
from serve.settings import SearchDefaults, ServeArguments
from zerogr.errors import UserError
from zerogr.store import storage


class TestConfigFile:
    def test_the_default_file(self) -> None:
        from ray.serve.schema import ServeDeploySchema

        config = load_serve_config()
        assert (config.http_options["host"], config.http_options["port"]) == ("127.0.0.1", 8000)
        assert config.options.keys() == {"Ingress", "Searcher"}
        searcher = config.options["Searcher"]
        assert searcher["max_queued_requests"] > 0
        assert {"min_replicas", "max_replicas", "target_ongoing_requests"} <= searcher["autoscaling_config"].keys()
        assert SearchDefaults.model_validate(config.options["Ingress"]["user_config"]) == SearchDefaults()
        with_index = {**config.args, "index": "s3://bucket/index"}
        assert ServeArguments.model_validate(with_index).index == "s3://bucket/index"
        # `serve deploy` checks the options of every deployment too.
        schema = ServeDeploySchema.model_validate(
            yaml.safe_load((Path(__file__).parents[2] / "serve" / "config.yaml").read_text())
        )
        assert {deployment.name for deployment in schema.applications[0].deployments} == {"Ingress", "Searcher"}

    def test_a_cluster_builds_the_application_from_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As `serve deploy` and KubeRay do: Ray imports what `import_path` names, and gives it `args` as they stand."""
        from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

        import serve.app

        seen, real = [], serve.app.application
        monkeypatch.setattr(serve.app, "application", lambda arguments: (seen.append(arguments), real(arguments))[1])
        args = {**load_serve_config().args, "index": "s3://bucket/index"}
        call_user_app_builder_with_args_if_necessary(serve.app.build, args)
        assert seen == [ServeArguments.model_validate(args)] and isinstance(seen[0], ServeArguments)
        with pytest.raises(ValidationError, match="most_querries"):
            serve.app.build({"index": "x", "most_querries": 1})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("applications: []", "must hold one application"),
            ("applications: [{import_path: other.app}]", "with import_path serve.app:build"),
            ("- ]", "cannot be read"),
            ("[1]", "is no config file of Ray Serve"),
            (
                "applications: [{import_path: serve.app:build, deployments: [{name: Searchers}]}]",
                "has 'Searchers', which .* allowed: Ingress, Searcher",
            ),
            (
                "applications: [{import_path: serve.app:build, runtime_env: {}}]",
                "has 'runtime_env', which `zerogr serve` does not take over",
            ),
            (
                "applications: [{import_path: serve.app:build, deployments: [{name: Searcher, num_replicas: -1}]}]",
                r"is no config file of Ray Serve: applications.0.deployments.0.num_replicas",
            ),
        ],
    )
    def test_wrong_files(self, tmp_path: Path, change: str, message: str) -> None:
        path = tmp_path / "serve.yaml"
        path.write_text(change)
        with pytest.raises(UserError, match=message):
            load_serve_config(str(path))

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="cannot be read"):
            load_serve_config(str(tmp_path / "absent.yaml"))

    def test_an_unfinished_index_is_refused_before_ray_starts(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="has no finished stage 'trie'"):
            serve_index(str(tmp_path))

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ("{token_file: absent}", "token_file '.*absent' cannot be read .No such file or directory."),
            ("{token_file: empty}", "token_file '.*empty' is empty; write the token into it"),
            ("{token_file: ''}", "args.token_file of the config file: String should have at least 1"),
            ("{most_queries: 0}", "args.most_queries of the config file: Input should be greater than or equal to 1"),
            ("{tokens: a}", "args.tokens of the config file: Extra inputs are not permitted"),
        ],
    )
    def test_wrong_arguments_are_refused_before_ray_starts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: str, message: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("empty").touch()
        Path("serve.yaml").write_text(f"applications: [{{import_path: serve.app:build, args: {args}}}]")
        with pytest.raises(UserError, match=message):
            serve_index(finished_index(tmp_path), config_file="serve.yaml")

    def test_a_taken_port_is_refused_before_ray_starts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "ray.is_initialized", lambda: False
        )  # other tests of this process may have left Ray running
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(UserError, match=rf"cannot listen on 127\.0\.0\.1:{port} .*; choose another port"):
                serve_index(finished_index(tmp_path), port=port, address="local")


def finished_index(folder: Path) -> str:
    record = {"fingerprint": "f", "inputs": {}, "counts": {}, "files": 0, "seconds": 0.0}
    manifest = {"format": 2, "config": {}, "stages": {"trie": record, "retriever": record}}
    storage.write_json(str(folder / "index.json"), manifest)
    return str(folder)


class TestSize:
    @pytest.mark.parametrize(
        ("searcher", "threads"),
        [
            ({"autoscaling_config": {"max_replicas": 4}}, 2),
            ({"num_replicas": 2}, 4),
            ({"num_replicas": 20}, 1),
            ({"num_replicas": "auto"}, 8),
            ({}, 8),
        ],
    )
    def test_searchers_share_the_cores(
        self, monkeypatch: pytest.MonkeyPatch, searcher: dict[str, object], threads: int
    ) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
        assert _num_threads(searcher) == threads

    def test_limits_of_the_default_file_are_those_of_the_machine(self) -> None:
        config = load_serve_config()
        on_gpu = dict(config.options["Searcher"])
        _size_searchers(config, None, is_default=True, has_gpu=False)
        assert ON_CPUS.items() <= config.options["Searcher"].items() and not ON_CPUS.items() <= on_gpu.items()

    def test_a_file_of_ones_own_is_taken_as_it_is(self) -> None:
        config = load_serve_config()
        before = dict(config.options["Searcher"])
        for has_gpu in (False, True):
            _size_searchers(config, None, is_default=False, has_gpu=has_gpu)
            assert config.options["Searcher"] == before
        _size_searchers(config, 3, is_default=False, has_gpu=False)
        assert (
            config.options["Searcher"]["num_replicas"] == 3 and "autoscaling_config" not in config.options["Searcher"]
        )
