"""Fuzzes every route from the OpenAPI document: no 5xx, only documented status codes and response schemas.

Sends valid and invalid requests, the same in each run of `make test`: those that schemathesis derives from each rule of
each field, 13,000 in all, and random ones. Half of the requests that name a resource, such as a job or a file, name an
existing one.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import hypothesis
import pytest
import requests
from fastapi import FastAPI
from fastapi.routing import APIRoute

from api.app import create_app
from api.settings import ApiSettings
from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.support.database import drop_database
from tests.support.examples import LONG, example_count
from tests.support.stack import KEY, Stack
from tests.support.waiting import eventually_sync

SEED = 20260
AUTHORIZATION = {"Authorization": f"Bearer {KEY}"}


def application() -> FastAPI:
    return create_app(ApiSettings(database_url="postgresql://unused", redis_url="redis://unused"))


# Collection needs only the names. Schemathesis's own decorator generates all cases when it collects, in each process.
OPERATIONS = [
    f"{method} {route.path_format}"
    for route in application().routes
    if isinstance(route, APIRoute) and route.include_in_schema
    for method in sorted(route.methods)
]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The OpenAPI document, in which `model` is restricted to a known and an unknown name."""
    described: dict[str, Any] = application().openapi()
    schemas = described["components"]["schemas"]
    for operations in described["paths"].values():
        for operation in operations.values():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            body_schema = schemas.get(body.get("$ref", "").rpartition("/")[2], {})
            if "model" in body_schema.get("properties", {}):
                body_schema["properties"]["model"] = {"enum": ["sim", "no-such-model"]}
    return described


@pytest.fixture(scope="module")
def schema(document: dict[str, Any]) -> Any:
    import schemathesis
    from schemathesis.config import SchemathesisConfig

    config = SchemathesisConfig()
    project = config.projects.default
    if not LONG:
        project.seed = SEED
    # The tests set the Authorization header themselves.
    project.generation.with_security_parameters = False
    # Unsupported methods of a path are not part of any operation.
    project.phases.coverage.unexpected_methods = set()
    return schemathesis.openapi.from_dict(document, config=config)


@pytest.fixture(scope="module")
def fuzz(schema: Any) -> Callable[[str, Callable[[Any], None]], None]:
    """Calls a function with the cases that schemathesis generates for an operation."""
    from schemathesis.core.result import Ok
    from schemathesis.generation import derive_operation_seed
    from schemathesis.generation.feedback import FeedbackSources
    from schemathesis.generation.hypothesis import builder
    from schemathesis.python._constants.orchestrator import make_constants_value_source

    operations = {result.ok().label: result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)}
    feedback = FeedbackSources(constants_value_source=make_constants_value_source(schema))

    def run(label: str, test: Callable[[Any], None]) -> None:
        operation = operations[label]
        config = builder.HypothesisTestConfig(
            project=schema.config,
            modes=list(builder.HypothesisTestMode),
            settings=schema.config.get_hypothesis_settings(operation=operation, phase="fuzzing"),
            seed=derive_operation_seed(schema.config.seed, label),
            feedback=feedback,
        )
        generated = builder.create_test(operation=operation, test_func=test, config=config)
        # Schemathesis marks tests of which it could not generate a part.
        for mark in (builder.MissingPathParameters, builder.InvalidHeadersExampleMark, builder.InvalidRegexMark):
            assert mark.get(generated) is None
        generated()

    return run


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The API and a worker without delays, with a context that long inputs exceed."""
    models: list[dict[str, object]] = [
        {
            "name": "sim",
            "engine": "simulated",
            "slots": 32,
            "options": {"ttft_ms": 0, "itl_ms": 0, "max_model_len": 128, "default_tokens": 8},
        }
    ]
    stack = make_stack(
        servers,
        tmp_path_factory,
        "fuzz",
        models,
        HEADRACE_MAX_BODY_BYTES=100_000,
    )
    try:
        stack.start_api()
        stack.start_worker("sim")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_fuzz")


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.url, headers=AUTHORIZATION, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@pytest.fixture(scope="module")
def existing_id(client: httpx.Client) -> Callable[[str], str]:
    """Returns the id of an existing resource, given the name of a path parameter."""

    def job() -> str:
        body = {"model": "sim", "prompt": "the mill", "max_tokens": 4}
        job_id: str = client.post("/v1/jobs", json=body, headers={"Prefer": "wait=30"}).json()["id"]
        return job_id

    def file() -> str:
        line = (
            b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "sim", "prompt": "x"}}'
        )
        answer = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", line)})
        file_id: str = answer.json()["id"]
        return file_id

    def batch() -> str:
        body = {"input_file_id": file(), "endpoint": "/v1/completions", "completion_window": "24h"}
        batch_id: str = client.post("/v1/batches", json=body).json()["id"]

        def ended() -> bool:
            return bool(client.get(f"/v1/batches/{batch_id}").json()["status"] == "completed")

        eventually_sync(ended, "the batch completes")
        return batch_id

    def response() -> str:
        body = {"model": "sim", "input": "the mill", "max_output_tokens": 4}
        response_id: str = client.post("/v1/responses", json=body).json()["id"]
        return response_id

    creators: dict[str, Callable[[], str]] = {
        "job_id": job,
        "file_id": file,
        "batch_id": batch,
        "response_id": response,
        "name": lambda: "sim",
    }
    ids: dict[str, str] = {}

    def get_or_create(parameter: str) -> str:
        if parameter not in ids:
            ids[parameter] = creators[parameter]()
        return ids[parameter]

    return get_or_create


calls = itertools.count()
statuses: defaultdict[str, Counter[int]] = defaultdict(Counter)


@pytest.mark.hypothesis
@pytest.mark.parametrize("label", OPERATIONS)
def test_every_response_is_documented(
    label: str,
    fuzz: Callable[[str, Callable[[Any], None]], None],
    stack: Stack,
    session: requests.Session,
    existing_id: Callable[[str], str],
) -> None:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    conformance: list[Any] = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]

    @hypothesis.settings(
        example_count(25, long=1000),
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )
    def send(case: Any) -> None:
        if next(calls) % 2:
            for parameter in set(case.path_parameters or {}) & {"job_id", "file_id", "batch_id", "response_id", "name"}:
                case.path_parameters[parameter] = existing_id(parameter)
        response = case.call(base_url=stack.url, session=session, headers=AUTHORIZATION, timeout=60)
        statuses[label][response.status_code] += 1
        case.validate_response(response, checks=conformance)

    fuzz(label, send)


# Operations without parameters and body never reject a request.
NEVER_REJECTED = {
    "GET /healthz",
    "GET /readyz",
    "GET /version",
    "GET /v1/models",
    "GET /metrics",
    "POST /v1/console/links",
    "GET /v1/webhooks/secret",
}
# Other operations need a resource in a certain state, or a combination of fields that is rarely generated.
OFTEN_SUCCESSFUL = {
    "GET /v1/jobs",
    "GET /v1/jobs/{job_id}",
    "GET /v1/files",
    "GET /v1/files/{file_id}",
    "GET /v1/batches",
    "GET /v1/batches/{batch_id}",
    "GET /v1/responses/{response_id}",
    "GET /v1/models/{name}",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/responses",
    "POST /v1/messages",
    "POST /v1/files",
}


@pytest.mark.parametrize("label", OPERATIONS)
def test_each_operation_had_successes_and_rejections(label: str) -> None:
    """Evaluates the test above: it sent requests that succeed and requests that fail."""
    seen = statuses[label]
    assert label not in OFTEN_SUCCESSFUL or any(status < 300 for status in seen), seen
    assert label in NEVER_REJECTED or any(400 <= status < 500 for status in seen), seen


def test_the_fuzzed_document_is_the_served_one(stack: Stack, document: dict[str, Any]) -> None:
    served = httpx.get(f"{stack.url}/openapi.json", timeout=60).json()
    assert served["paths"].keys() == document["paths"].keys()
    operations = {f"{method.upper()} {path}" for path, methods in served["paths"].items() for method in methods}
    assert operations == set(OPERATIONS)


def test_the_log_has_no_stack_trace(stack: Stack) -> None:
    log = (stack.folder / "api.log").read_text()
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]
