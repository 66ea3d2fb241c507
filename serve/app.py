"""The Ray Serve application: an ingress that speaks HTTP, and searchers that hold the model.

    zerogr serve -> Searcher                          a Ray of our own: the process of the command is the ingress
    HTTP proxy -> Ingress -> Searcher                 a cluster

`serve/config.yaml` holds the deployments' options (replicas, limits) and the defaults of a search, which on a cluster may
change while the application runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serve.ingress import Ingress
from serve.logs import LOGGING_CONFIG
from serve.searcher import Searcher, load_retriever
from serve.settings import ServeArguments
from serve.versions import Loader

if TYPE_CHECKING:
    from ray.serve import Application

Options = dict[str, dict[str, Any]]
"""Deployment name -> options of Ray Serve's `Deployment.options`."""


def build(args: dict[str, Any]) -> Application:
    """Returns the application for `args` of a config file, whose `import_path: serve.app:build` calls this on a cluster.

    Raises:
        ValidationError: A key is unknown, or a value wrong.
    """
    return application(ServeArguments.model_validate(args))


def application(
    arguments: ServeArguments, *, loader: Loader = load_retriever, options: Options | None = None
) -> Application:
    """Returns the application.

    Args:
        arguments: What the searchers load.
        loader: Makes a searcher's retriever; runs in the searcher's process.
        options: Of `Ingress` and `Searcher`.
    """
    return Ingress.options(**_of("Ingress", options)).bind(
        searchers(arguments, loader=loader, options=options), arguments
    )


def searchers(
    arguments: ServeArguments, *, loader: Loader = load_retriever, options: Options | None = None
) -> Application:
    """Returns the application without its ingress; arguments as for `application`."""
    return Searcher.options(**_of("Searcher", options)).bind(arguments, loader)


def _of(name: str, options: Options | None) -> dict[str, Any]:
    return {"logging_config": LOGGING_CONFIG, **(options or {}).get(name, {})}
