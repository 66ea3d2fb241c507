"""The whole application on a local Ray Serve, with a double in the place of its retriever. The contract is in `test_api`.

Once behind Ray Serve's proxy, which comes first because Serve keeps the port that it is started with, and once with this
process as the ingress: whoever asks sees no difference.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml

from serve.run import serve_index
from tests.serve import doubles
from tests.serve.doubles import HTML_DOCID
from tests.servers import free_port
from zerogr.decoding import STRATEGIES
from zerogr.retriever import Retriever

TOKEN = "0123456789abcdef"
PATIENT_S = 120
"""More than the service itself waits for a searcher, so that it is the service that answers."""


@dataclass
class Service:
    client: httpx.Client
    folder: Path
    printed: str
    in_process: bool


@pytest.fixture(scope="module", params=[False, True], ids=["replicas", "in process"])
def service(
    local_ray: None, serve_port: int, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Service]:
    """The application with a token, a queue of one and a default k of 3."""
    import ray

    ray.cloudpickle.register_pickle_by_value(doubles)  # a replica cannot import a test module by name
    folder, port = tmp_path_factory.mktemp("service"), free_port() if request.param else serve_port
    config = {
        "applications": [
            {
                "name": "zerogr",
                "import_path": "serve.app:build",
                "args": {"token_file": str(folder / "token"), "follow_s": 0.5},
                "deployments": [
                    {
                        "name": "Ingress",
                        "ray_actor_options": {"num_cpus": 0.1},
                        "user_config": {"k": 3, "strategy": "beam"},
                    },
                    {
                        "name": "Searcher",
                        "max_ongoing_requests": 1,
                        "max_queued_requests": 1,
                        "health_check_period_s": 0.5,
                    },
                ],
            }
        ]
    }
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    (folder / "token").write_text(f"{TOKEN}\n")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        stop = serve_index(
            doubles.finished_index(folder),
            port=port,
            config_file=str(folder / "serve.yaml"),
            blocking=False,
            in_process=request.param,
            loader=partial(doubles.load_double, folder=str(folder)),
        )
    sent = {"authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENT_S, headers=sent) as client:
        yield Service(client, folder, printed.getvalue(), request.param)
    stop()


class TestService:
    def test_prints_one_line_with_the_url(self, service: Service) -> None:
        assert service.printed == f"Serving {service.folder} at {service.client.base_url}/\n"

    def test_search(self, service: Service) -> None:
        answer = service.client.post("/search", json={"query": "wing", "instruction": "Find it.", "k": 2}).json()
        assert answer.keys() == {"hits", "index_version", "took_ms"}
        said = {"title": "a title ", "text": "200 characters"}
        assert answer["hits"] == [
            {"doc_id": "wing Find it. beam", "docid": HTML_DOCID, "rank": 1, "score": -0.5, **said},
            {"doc_id": "wing Find it. beam", "docid": HTML_DOCID, "rank": 2, "score": -1.0, **said},
        ]

    def test_hits_say_what_is_asked_for(self, service: Service) -> None:
        body = {"query": "wing", "k": 1, "fields": ["text", "metadata"], "snippet_characters": 50}
        [hit] = service.client.post("/search", json=body).json()["hits"]
        assert hit.keys() == {"doc_id", "docid", "rank", "score", "text", "metadata"}
        assert (hit["text"], hit["metadata"]) == ("50 characters", {})
        [hit] = service.client.post("/search", json={"query": "wing", "k": 1, "fields": []}).json()["hits"]
        assert hit.keys() == {"doc_id", "docid", "rank", "score"}

    def test_restrictions_reach_the_searcher(self, service: Service) -> None:
        wanted = {"allow": ["d1"], "filter": {"year": {"gte": 2020}, "draft": True}}
        [hit] = service.client.post("/search", json={"query": "wing", "k": 1, **wanted}).json()["hits"]
        assert hit["title"] == f"a title {wanted}"
        response = service.client.post("/search", json={"query": "wing", "filter": {"unknown": 1}})
        assert (response.status_code, response.json()) == (422, {"error": "filter has the key 'unknown'"})

    def test_defaults_come_from_the_config_file(self, service: Service) -> None:
        hits = service.client.post("/search", json={"queries": ["wing", "lift"], "strategy": "greedy"}).json()["hits"]
        assert [len(each) for each in hits] == [3, 3]
        assert {hit["doc_id"] for hit in hits[1]} == {"lift None greedy"}

    def test_an_explanation(self, service: Service) -> None:
        answer = service.client.post("/explain", json={"query": "wing", "filter": {"year": 1}}).json()
        assert answer.keys() == {"hits", "tree", "index_version", "took_ms"}
        assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3] and answer["index_version"] == "f-f"
        assert answer["hits"][0]["parts"] == [{"ranker": "terms", "text": "wing", "probability": 0.5, "score": 1.0}]
        response = service.client.post("/explain", json={"query": "a mistake"})
        assert (response.status_code, response.json()) == (422, {"error": "the index knows no such instruction"})

    def test_bad_input(self, service: Service) -> None:
        for body, status in (({"query": "wing", "k": 0}, 422), ({"query": "a mistake"}, 422), ("{", 400)):
            response = service.client.post(
                "/search", **({"content": body} if isinstance(body, str) else {"json": body})
            )
            assert response.status_code == status
            assert response.json().keys() == {"error"}
        assert service.client.post("/search", json={"query": "a mistake"}).json() == {
            "error": "the index knows no such instruction"
        }

    def test_a_bug_shows_no_traceback(self, service: Service) -> None:
        response = service.client.post("/search", json={"query": "a bug"})
        assert (response.status_code, response.json()) == (500, {"error": "internal error; the server's log says more"})

    def test_page_probes_and_index(self, service: Service) -> None:
        assert service.client.get("/").text.startswith("<!doctype html>")
        assert service.client.get("/healthz").json() == {"status": "alive"}
        assert service.client.get("/readyz").json() == {"status": "ready"}
        summary = service.client.get("/index").json()
        assert summary["index_version"] == summary["versions"]["current"] == "f-f"
        assert (summary["versions"]["previous"], summary["versions"]["refused"]) == (None, None)
        assert summary["strategies"] == list(STRATEGIES)
        assert (summary["k"], summary["strategy"]) == (3, "beam")

    def test_probes_answer_while_a_search_runs_and_a_full_queue_sheds(self, service: Service) -> None:
        def search(_number: int) -> httpx.Response:
            response = service.client.post("/search", json={"query": "wait"})
            if response.status_code == 503:
                (service.folder / "release").touch()
            return response

        # One decodes, one waits; of the others at least one must be refused, and the first refusal lets the rest end.
        with ThreadPoolExecutor(6) as threads:
            pending = [threads.submit(search, number) for number in range(6)]
            assert service.client.get("/healthz").status_code == 200
            assert service.client.get("/readyz").status_code == 200
            responses = [each.result() for each in pending]
        statuses = sorted(response.status_code for response in responses)
        assert set(statuses) == {200, 503}
        refused = next(response for response in responses if response.status_code == 503)
        assert refused.json() == {"error": "too many searches are waiting; try again soon"}
        assert refused.headers["retry-after"] == "1"
        assert service.client.post("/search", json={"query": "wait"}).status_code == 200

    def test_only_the_token_opens_it(self, service: Service) -> None:
        for path, status in (("/index", 401), ("/metrics", 401), ("/healthz", 200), ("/readyz", 200), ("/", 200)):
            assert httpx.get(service.client.base_url.join(path)).status_code == status, path
        assert httpx.post(service.client.base_url.join("/admin/rollback")).status_code == 401

    def test_there_is_nothing_to_go_back_to(self, service: Service) -> None:
        response = service.client.post("/admin/rollback")
        assert response.status_code == 409 and "has no version before this one" in response.json()["error"]

    def test_a_request_can_be_followed_through_log_and_metrics(self, service: Service) -> None:
        import ray

        asked_as = f"followed-{service.in_process}"
        answer = service.client.post("/search", json={"query": "private wing"}, headers={"x-request-id": asked_as})
        assert answer.headers["x-request-id"] == asked_as, "once, and not by the proxy as well"
        metrics = service.client.get("/metrics").text
        assert 'zerogr_search_seconds_count{phase="overhead"}' in metrics and "zerogr_cache_slots{searcher=" in metrics
        folder = Path(ray._private.worker.global_worker.node.get_logs_dir_path()) / "serve"
        text = "".join(file.read_text() for file in folder.glob("*_zerogr*.log"))
        lines = [json.loads(line) for line in text.splitlines()]
        [line] = [line for line in lines if line.get("request_id") == asked_as]
        assert (line["status"], line["num_queries"], line["deployment"]) == (200, 1, "zerogr_Ingress")
        assert "private wing" not in text

    def test_a_searcher_whose_thread_is_dead_is_replaced(self, service: Service) -> None:
        response = service.client.post("/search", json={"query": "the end of the thread"})
        assert (response.status_code, response.json()) == (503, {"error": "the searcher was lost; try again soon"})
        while (status := service.client.post("/search", json={"query": "wing"}).status_code) != 200:
            assert status in (503, 504), "until another has started, however long that takes"
            time.sleep(0.2)


def test_a_real_index(tiny_index: str, service: Service, request: pytest.FixtureRequest) -> None:
    """The real retriever answers over HTTP what it answers in this process, from a disk and from S3."""
    config = {"applications": [{"name": "real", "route_prefix": "/real", "import_path": "serve.app:build"}]}
    (service.folder / "real.yaml").write_text(yaml.safe_dump(config))
    with httpx.Client(timeout=PATIENT_S) as client:
        stop = serve_index(
            request.getfixturevalue("remote_index") if service.in_process else tiny_index,
            port=(port := free_port() if service.in_process else service.client.base_url.port),
            config_file=str(service.folder / "real.yaml"),
            blocking=False,
            in_process=service.in_process,
        )
        client.base_url = httpx.URL(f"http://127.0.0.1:{port}/real")
        body = {"query": "open a file", "k": 3, "deny": ["coffee-1"], "snippet_characters": 40}
        answer = client.post("/search", json=body).json()
        explained = client.post("/explain", json=body).json()
        refused = client.post("/search", json={**body, "filter": {"year": 2020}})
        page, version = client.get("/"), client.get("/index").json()["index_version"]
        stop()
    assert page.text.startswith("<!doctype html>") and version == answer["index_version"]
    tenant = Retriever.load(tiny_index).restricted(deny=["coffee-1"])
    [expected] = tenant.search(["open a file"], k=3, fields=["title", "text"], snippet_characters=40)
    for hit, other in zip(answer["hits"], expected, strict=True):
        assert hit == {**other.as_json(), "score": pytest.approx(other.score, abs=1e-4)}
        assert 0 < len(hit["text"]) <= 42
    assert [hit["doc_id"] for hit in explained["hits"]] == [hit.doc_id for hit in expected]
    assert explained["tree"]["num_docids"] == 39 and explained["tree"]["root"]["best_rank"] == 1
    assert refused.status_code == 422 and "has no keys to filter by" in refused.json()["error"]
