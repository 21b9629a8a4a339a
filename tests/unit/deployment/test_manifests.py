"""Images, docker-compose.yml and Kubernetes manifests: they render, pass linters and refer to existing settings."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml

from api.settings import ApiSettings
from launcher.parts import Parts
from launcher.settings import load_settings
from shared.config.models.loader import Registry, load_registry
from shared.config.models.upstream import UpstreamModel
from tests.support.engine_tables import all_examples
from tests.support.judges import linter
from tests.support.keda import SCALED_OBJECT
from tests.support.stack import REPOSITORY
from workers.flower import DEFAULTS as FLOWER_DEFAULTS
from workers.settings import WorkerSettings

OVERLAYS = ("upstreams", "cpu", "gpu", "multi-region/eu", "multi-region/us")
DOCKERFILES = ("api/Dockerfile", "workers/Dockerfile")
COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]

# Variables that are read elsewhere than in the settings of API and workers.
OTHER_VARIABLES = {
    "DATABASE_URL",
    "REDIS_URL",
    "HEADRACE_API_KEY",  # api/keys/__main__.py
    "HEADRACE_CACHE",  # shared/config/bundled_model.py
    "FLOWER_BASIC_AUTH",  # Flower
    "HEADRACE_FLOWER_HOSTS",  # workers/flower.py
    "HEADRACE_ROLE_PASSWORD",  # migrations/__main__.py
    "HF_TOKEN",
    "UPSTREAM_API_KEY",  # models.yaml's api_key_env
}
MIB = 1024 * 1024
FOREIGN = ("PYTHON", "HF_", "TORCHINDUCTOR_", "TRITON_", "XDG_", "PATH")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The overlays as kubectl renders them."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: the manifests are not rendered")
    folder = tmp_path_factory.mktemp("rendered")
    files = {}
    for overlay in OVERLAYS:
        command = ["kubectl", "kustomize", f"k8s/overlays/{overlay}"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr  # deprecations
        files[overlay] = folder / f"{overlay.replace('/', '-')}.yaml"
        files[overlay].write_text(done.stdout)
    return files


def objects(file: Path, *kinds: str) -> list[dict[str, Any]]:
    return [item for item in yaml.safe_load_all(file.read_text()) if not kinds or item["kind"] in kinds]


def pods(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for item in objects(file, "Deployment", "StatefulSet", "Job"):
        yield item["metadata"]["name"], item["spec"]["template"]["spec"]


def tool(name: str) -> str:
    path = linter(name)
    if path is None:
        pytest.skip(f"{name} is not installed; install it with: python -m tests.support.judges")
    return str(path)


def passes(*command: str) -> None:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def known_objects(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of kinds that Kubernetes knows, and of KEDA's kind the part that Kubernetes reads."""
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"}
    for item in objects(file):
        if item["kind"] != "ScaledObject":
            yield item
            continue
        behavior = item["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        yield {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "x"},
            "spec": {"scaleTargetRef": target, "maxReplicas": 1, "behavior": behavior},
        }


def test_kubernetes_accepts_the_manifests(rendered: dict[str, Path], tmp_path: Path) -> None:
    """All overlays in one run, and each object once: most are the same in several."""
    validate = tool("kubernetes-validate")
    seen: set[str] = set()
    files = []
    for overlay, rendered_file in rendered.items():
        texts = [yaml.safe_dump(item) for item in known_objects(rendered_file)]
        new = [text for text in texts if text not in seen]
        seen.update(new)
        if new:
            files.append(tmp_path / f"{overlay.replace('/', '-')}.yaml")
            files[-1].write_text("---\n".join(new))
    done = subprocess.run([validate, "--strict", *map(str, files)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "Couldn't find schema" not in done.stdout + done.stderr
    assert done.stdout.count(" passed for resource ") == len(seen) > len(OVERLAYS)


def test_checkov_reports_nothing(rendered: dict[str, Path]) -> None:
    """All overlays in one run, because each run imports checkov for seconds."""
    config = str(REPOSITORY / "k8s" / "checkov.yaml")
    files = [argument for file in rendered.values() for argument in ("-f", str(file))]
    passes(tool("checkov"), "--config-file", config, "--skip-download", "--compact", *files)


@pytest.mark.parametrize("file", DOCKERFILES)
def test_hadolint_reports_nothing(file: str) -> None:
    passes(tool("hadolint"), file)


@pytest.mark.parametrize("overlay", OVERLAYS[2:])
def test_a_model_scales_by_its_own_jobs(rendered: dict[str, Path], overlay: str) -> None:
    deployments = {item["metadata"]["name"]: item for item in objects(rendered[overlay], "Deployment")}
    scaled = objects(rendered[overlay], "ScaledObject")
    assert scaled
    for item in scaled:
        jsonschema.validate(item, SCALED_OBJECT)
        spec = item["spec"]
        worker = deployments[spec["scaleTargetRef"]["name"]]
        assert "replicas" not in worker["spec"], "applying the manifest would reset the replicas that KEDA has set"
        model = worker["spec"]["template"]["spec"]["containers"][0]["args"][-1]
        query = spec["triggers"][0]["metadata"]["query"]
        assert " ".join(query.split()) == (
            f'(sum(max by (priority) (headrace_jobs_waiting{{model="{model}"}}))'
            f' + sum(max by (priority) (headrace_jobs_running{{model="{model}"}})))'
            f' / max(headrace_worker_slots{{model="{model}"}})'
        )
        assert spec["minReplicaCount"] == 0
        assert spec["triggers"][0]["metadata"]["activationThreshold"] == "0"  # one waiting job starts a worker


def test_the_schema_rejects_an_invalid_scaled_object(rendered: dict[str, Path]) -> None:
    (item,) = objects(rendered["gpu"], "ScaledObject")
    item["spec"]["triggers"][0]["metadata"]["threshold"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(item, SCALED_OBJECT)
    del item["spec"]["triggers"][0]["metadata"]["threshold"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(item, SCALED_OBJECT)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_serve_the_declared_models(rendered: dict[str, Path], overlay: str, tmp_path: Path) -> None:
    """Each with the keys of its own model, from a Secret."""
    models = declared(rendered[overlay], tmp_path).models
    workers = [spec["containers"][0] for name, spec in pods(rendered[overlay]) if name.startswith("worker-")]
    assert [container["args"][-1] for container in workers] == list(models)
    keys = {key for model in models.values() for key in model.secret_envs}
    for container, model in zip(workers, models.values(), strict=True):
        given = {item["name"]: item for item in container["env"] if item["name"] in keys}
        assert set(given) == set(model.secret_envs)
        assert all("secretKeyRef" in item["valueFrom"] for item in given.values())


def test_workers_reach_the_upstreams_of_their_overlay(rendered: dict[str, Path], tmp_path: Path) -> None:
    """The ports of all examples of self-hosted upstreams are open to workers, in labelled namespaces only."""
    policies = {item["metadata"]["name"]: item["spec"] for item in objects(rendered["upstreams"], "NetworkPolicy")}
    opened = policies["upstreams"]
    assert opened["podSelector"] == {"matchLabels": {"app.kubernetes.io/component": "worker"}}
    (rule,) = opened["egress"]
    assert rule["to"] == [{"namespaceSelector": {"matchLabels": {"headrace/upstreams": "true"}}}]
    ports = {port["port"] for port in [*rule["ports"], *policies["outside"]["egress"][0]["ports"]]}
    models = [*declared(rendered["upstreams"], tmp_path).models.values(), *all_examples(tmp_path).models.values()]
    for model in models:
        if isinstance(model, UpstreamModel):
            url = urlsplit(model.options.base_url)
            assert (url.port or {"http": 80, "https": 443}[url.scheme]) in ports, model.name


def declared(file: Path, folder: Path) -> Registry:
    """The models of an overlay."""
    (config,) = [item for item in objects(file, "ConfigMap") if item["metadata"]["name"].startswith("models-")]
    models = folder / "declared.yaml"
    models.write_text(config["data"]["models.yaml"])
    return load_registry(models)


def test_the_cpu_overlay_serves_the_models_of_make_up() -> None:
    assert (REPOSITORY / "k8s/overlays/cpu/models.yaml").read_text() == (REPOSITORY / "models.yaml").read_text()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_refer_to_existing_settings_ports_and_probes(
    rendered: dict[str, Path], overlay: str, tmp_path: Path
) -> None:
    keys = {key for model in declared(rendered[overlay], tmp_path).models.values() for key in model.secret_envs}
    settings = next(
        item["data"]
        for item in objects(rendered[overlay], "ConfigMap")
        if item["metadata"]["name"].startswith("settings-")
    )
    check_variables(set(settings), ApiSettings, WorkerSettings)
    for name, spec in pods(rendered[overlay]):
        (container,) = spec["containers"]
        values = {item["name"]: item.get("value", "") for item in container.get("env", ())}
        grace = spec.get("terminationGracePeriodSeconds", 30)
        if name == "api":
            check_variables(set(values), ApiSettings)
            assert {probe["httpGet"]["path"] for probe in probes(container)} == {"/healthz"}
            assert container["ports"][0]["containerPort"] == image_port("api/Dockerfile")
            assert grace > 5 + float(values["HEADRACE_STOP_GRACE_S"])
        elif name.startswith("worker-"):
            check_variables(set(values) - keys, WorkerSettings)
            assert {tuple(probe["exec"]["command"][:3]) for probe in probes(container)} == {
                ("python", "-m", "workers.probe")
            }
            assert str(container["ports"][0]["containerPort"]) == values["HEADRACE_METRICS_PORT"]
            assert grace > float(values["HEADRACE_DRAIN_S"]) + 30
        elif name == "flower":
            check_variables(set(values))
            assert f"--port={container['ports'][0]['containerPort']}" in container["args"]


def test_compose_refers_to_existing_settings() -> None:
    for name, service in COMPOSE["services"].items():
        variables = set(service.get("environment", {}))
        if name == "api":
            check_variables(variables, ApiSettings)
        elif name.startswith("worker"):
            check_variables(variables, WorkerSettings)
        elif service["image"].startswith("headrace-"):
            check_variables(variables)
        if service["image"].startswith("headrace-"):
            assert service["image"].endswith(f":${{HEADRACE_VERSION:-{VERSION}}}")


def test_the_first_key_of_compose_is_that_of_make_up(tmp_path: Path) -> None:
    """So that the console and the command line can do the same with it."""
    settings = load_settings({"ENGINE": "simulated", "HEADRACE_HOME": str(tmp_path)})
    models = load_registry(REPOSITORY / "models.simulated.yaml")
    launched = Parts(settings, models, "postgresql://", "redis://").ensure_key("hr_key")
    assert list(launched.command[1:]) == COMPOSE["services"]["key"]["command"][1:]


@pytest.mark.parametrize("file", DOCKERFILES)
def test_the_build_context_has_what_images_copy(file: str) -> None:
    context = set(re.findall(r"^!([^*\n]+?)(?:/\*.*)?$", (REPOSITORY / ".dockerignore").read_text(), re.MULTILINE))
    for source in copied(file):
        assert (REPOSITORY / source).exists(), source
        assert source.partition("/")[0] in context, source


def test_the_command_line_runs_with_what_the_api_image_has(tmp_path: Path) -> None:
    for source in copied("api/Dockerfile"):
        if (REPOSITORY / source).is_dir():
            (tmp_path / source).symlink_to(REPOSITORY / source)
    script = tmp_path / "headrace"
    script.write_text((REPOSITORY / "cli/headrace.sh").read_text().replace("/app", str(tmp_path)))
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"

    def headrace(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(script), *arguments],
            cwd=tmp_path,
            env={"PATH": path, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    assert headrace("--version").stdout == f"headrace {VERSION}\n"
    status = headrace("status", "--once", HEADRACE_API_KEY="hr_key", HEADRACE_PORT="9")
    assert (status.returncode, status.stderr.splitlines()[0][:42]) == (3, "Error: Cannot connect to http://127.0.0.1:")
    assert "127.0.0.1:9" in status.stderr, "the port of the API in this container"
    elsewhere = headrace("status", "--once", HEADRACE_API_KEY="hr_key", HEADRACE_URL="http://127.0.0.1:7")
    assert "127.0.0.1:7" in elsewhere.stderr


def copied(file: str) -> set[str]:
    """What the Dockerfile copies from the build context."""
    text = (REPOSITORY / file).read_text()
    return set(re.findall(r"^COPY (?:--chmod=\S+ )?([^-\s]\S*) ", text, re.MULTILINE))


def test_compose_hardens_all_services() -> None:
    """Also those of others: read-only, without capabilities and new privileges; servers publish no port."""
    for name, service in COMPOSE["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("user", "10001").split(":")[0] not in ("0", "root"), name
    for name in ("postgres", "redis", "migrate", "key", "worker", "worker-gpu", "worker-light"):
        assert "ports" not in COMPOSE["services"][name], name


def test_compose_separates_roles() -> None:
    """Only migrations use the owner of the tables, and each kind of process has its own user in Redis."""
    for name, service in COMPOSE["services"].items():
        variables = service.get("environment", {})
        if "DATABASE_URL" in variables:
            role = "headrace" if name == "migrate" else "headrace_app"
            assert variables["DATABASE_URL"].startswith(f"postgresql://{role}:"), name
        if "REDIS_URL" in variables:
            assert variables["REDIS_URL"].startswith(f"redis://{name.partition('-')[0]}:"), name
        assert "REDIS_PASSWORD" not in variables or name == "redis"
        assert "POSTGRES_PASSWORD" not in variables or name == "postgres"


def test_flower_stays_below_its_memory_limits(tmp_path: Path) -> None:
    """`make up`, Compose and the cluster start `workers.flower`, and keep its bounds on tasks and workers."""
    models = load_registry(REPOSITORY / "models.simulated.yaml")
    settings = load_settings({"ENGINE": "simulated", "HEADRACE_HOME": str(tmp_path)})
    launched = Parts(settings, models, "postgresql://", "redis://").flower("password")
    service = COMPOSE["services"]["flower"]
    manifests = list(yaml.safe_load_all((REPOSITORY / "k8s/base/flower.yaml").read_text()))
    deployment = next(item for item in manifests if item["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    variables = {item["name"] for item in container["env"]}
    for command, environment in (
        (launched.command, set(launched.environment)),
        (service["command"], set(service["environment"])),
        (container["args"], variables),
    ):
        assert list(command[1:3]) == ["-m", "workers.flower"]
        assert not any("max" in argument for argument in command[3:])
        assert not environment & set(FLOWER_DEFAULTS)
    most = (
        120 * MIB
        + int(FLOWER_DEFAULTS["FLOWER_MAX_TASKS"]) * 9_000
        + int(FLOWER_DEFAULTS["FLOWER_MAX_WORKERS"]) * 20_000
    )
    assert service["deploy"]["resources"]["limits"]["memory"] == "512M"
    assert container["resources"]["limits"]["memory"] == "512Mi"
    assert most < 400_000_000


def test_compose_waits_for_drains() -> None:
    services = COMPOSE["services"]
    for name in ("worker", "worker-gpu", "worker-light"):
        drain_s = default(services[name]["environment"]["HEADRACE_DRAIN_S"])
        assert seconds(services[name]["stop_grace_period"]) > drain_s + 30
    stop_s = default(services["api"]["environment"]["HEADRACE_STOP_GRACE_S"])
    assert seconds(services["api"]["stop_grace_period"]) > stop_s + 10


def test_compose_variables_are_in_the_example_or_have_a_default() -> None:
    example = (REPOSITORY / ".env.example").read_text()
    given = set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE))
    text = (REPOSITORY / "docker-compose.yml").read_text()
    used = dict(re.findall(r"(?<!\$)\$\{([A-Z_]+)(:[-?])?", text))
    assert {name for name, kind in used.items() if kind == ":?"} <= given
    assert all(used.values()), "a variable without a default or a message"
    assert given - {"COMPOSE_PROJECT_NAME", "COMPOSE_PROFILES"} <= set(used)


def test_env_is_written_once_with_generated_secrets(tmp_path: Path) -> None:
    (tmp_path / "launcher").mkdir()
    for file in ("launcher/compose_env.sh", ".env.example"):
        shutil.copy(REPOSITORY / file, tmp_path / file)
    command = ["sh", str(tmp_path / "launcher/compose_env.sh")]
    subprocess.run(command, check=True, capture_output=True)
    written = tmp_path / ".env"
    assert written.stat().st_mode & 0o077 == 0
    values = dict(line.split("=", 1) for line in written.read_text().splitlines() if "=" in line and line[0] != "#")
    secrets = [value for name, value in values.items() if name.endswith(("PASSWORD", "HEADRACE_API_KEY"))]
    assert len(set(secrets)) == len(secrets) == 9
    assert all(len(secret) >= 48 and "GENERATED" not in secret for secret in secrets)
    assert re.fullmatch(r"hr_[0-9a-f]{8}_[0-9a-f]{48}", values["HEADRACE_API_KEY"])
    before = written.read_text()
    assert subprocess.run(command, check=False, capture_output=True).returncode == 1
    assert written.read_text() == before


@pytest.mark.parametrize("file", DOCKERFILES)
def test_images_refer_to_existing_settings(file: str) -> None:
    text = (REPOSITORY / file).read_text()
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    variables = {name for name in re.findall(r"(?:^|\s)([A-Z_]+)=", block) if not name.startswith(FOREIGN)}
    check_variables(variables, ApiSettings if file.startswith("api") else WorkerSettings)
    assert not re.search(r"(?i)(password|secret|token|api_key)\s*=", text), "the image's layers would contain a secret"
    users = re.findall(r"^USER (\S+)$", text, re.MULTILINE)
    assert users
    assert set(users) == {"10001:10001"}


def check_variables(names: set[str], *kinds: type[ApiSettings | WorkerSettings]) -> None:
    """Check that each variable is read by a process of these kinds."""
    known = OTHER_VARIABLES | {
        str(field.validation_alias or f"HEADRACE_{name}".upper())
        for kind in kinds
        for name, field in kind.model_fields.items()
    }
    assert names <= known, f"nothing reads {names - known}"


def probes(container: dict[str, Any]) -> list[dict[str, Any]]:
    return [container[kind] for kind in ("startupProbe", "readinessProbe", "livenessProbe")]


def image_port(file: str) -> int:
    (port,) = re.findall(r"^EXPOSE (\d+)$", (REPOSITORY / file).read_text(), re.MULTILINE)
    return int(port)


def default(value: str) -> float:
    found = re.fullmatch(r"\$\{[A-Z_]+:-([0-9.]+)\}", value)
    assert found is not None
    return float(found[1])


def seconds(value: str) -> float:
    return float(value.removesuffix("s"))
