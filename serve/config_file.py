"""The config file of a service: one of Ray Serve that holds this application and nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from serve.settings import SearchDefaults, ServeArguments
from serve.tokens import read_token
from zerogr.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """A config file of Ray Serve that holds this application and nothing else."""

    proxy_location: str
    http_options: dict[str, Any]
    name: str
    route_prefix: str
    args: dict[str, Any]
    """Fields of `ServeArguments`; `index` is filled in by the caller."""
    options: dict[str, dict[str, Any]]
    """Deployment name -> options of Ray Serve's `Deployment.options`."""

    @property
    def host(self) -> str:
        """That is listened on."""
        return str(self.http_options["host"])

    @property
    def port(self) -> int:
        """That is listened on."""
        return int(self.http_options["port"])

    @property
    def defaults(self) -> SearchDefaults:
        """What a search does unless its request says otherwise.

        Raises:
            UserError: `user_config` of the ingress is wrong.
        """
        user_config = self.options.get("Ingress", {}).get("user_config") or {}
        return _checked(SearchDefaults, user_config, "user_config")

    def arguments(self, index_uri: str) -> ServeArguments:
        """Returns what is served, checked as far as it can be before anything starts.

        Raises:
            UserError: `args` is wrong, or the token's file is.
        """
        arguments = _checked(ServeArguments, {**self.args, "index": index_uri}, "args")
        if arguments.token_file is None:
            return arguments
        file = os.path.abspath(arguments.token_file)  # a replica's working directory is not ours
        read_token(file)
        return arguments.model_copy(update={"token_file": file})


def load_serve_config(path: str | None = None) -> ServeConfig:
    """Returns a config file's content, the default file's if `path` is None.

    Raises:
        UserError: The file is missing, no config of Ray Serve, or holds something else than this application.
    """
    from ray.serve.schema import ServeDeploySchema

    name = path or "config.yaml"
    try:
        source = Path(path) if path else resources.files("serve").joinpath("config.yaml")
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"the config file '{name}' cannot be read: {' '.join(str(error).split())}") from error
    try:
        ServeDeploySchema.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"'{name}' is no config file of Ray Serve: {place}: {first['msg']}") from error
    applications = content["applications"]
    if len(applications) != 1 or applications[0].get("import_path") != "serve.app:build":
        raise UserError(f"'{name}' must hold one application, with import_path serve.app:build")
    app = applications[0]
    deployments = app.get("deployments", [])
    _refuse_others(name, content, ("proxy_location", "http_options", "applications"))
    _refuse_others(name, app, ("name", "route_prefix", "import_path", "args", "deployments"))
    _refuse_others(name, {deployment["name"] for deployment in deployments}, ("Ingress", "Searcher"))
    return ServeConfig(
        proxy_location=content.get("proxy_location", "EveryNode"),
        http_options={"host": "127.0.0.1", "port": 8000, **content.get("http_options", {})},
        name=app.get("name", "zerogr"),
        route_prefix=app.get("route_prefix", "/"),
        args=app.get("args", {}),
        options={item["name"]: {key: item[key] for key in item if key != "name"} for item in deployments},
    )


def _refuse_others(name: str, given: Any, known: tuple[str, ...]) -> None:
    for key in given:
        if key not in known:
            raise UserError(
                f"'{name}' has {key!r}, which `zerogr serve` does not take over; allowed: {', '.join(known)}"
            )


def _checked(model: type[Model], values: dict[str, Any], section: str) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join([section, *map(str, first["loc"])])
        raise UserError(f"{place} of the config file: {first['msg']}") from error
