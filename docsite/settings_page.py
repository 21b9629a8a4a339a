"""docs/settings.md: the settings of the processes, from the classes that read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from api.settings import ApiSettings
from shared.config.settings import REPOSITORY, Settings, SettingsGroup
from workers.settings import WorkerSettings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
_INTRODUCTION = """\
# Settings

The environment variables that the processes read. This page is generated from the code by
`.venv/bin/python -m docsite --update`. Those of `make up` itself are in [Operations](operations.md#on-one-machine),
those of tracing (`OTEL_*`) in [Traces](operations.md#traces), and those of a model in [Models](operations.md#models). A
process that finds an invalid value names the variable and exits with status 2.
"""
# The pages that describe the feature of a group.
_ABOUT = {
    "Settings": "[Connections to PostgreSQL and Redis](deploy.md#connections-to-postgresql-and-redis)",
    "HttpSettings": "[Browsers](operations.md#browsers)",
    "CompatibilitySettings": "[Compatibility](compatibility.md)",
    "AuthSettings": "[API keys](operations.md#api-keys)",
    "QuotaSettings": "[Quotas](operations.md#quotas)",
    "RateLimitSettings": "[Rate limits](usage.md#rate-limits)",
    "StartSettings": "[Early starts](decisions/queue.md#a-worker-may-start-a-new-job-before-its-claim-is-committed)",
    "ContextSettings": "[Summaries](context.md#summaries)",
    "FileSettings": "[Files and batches](operations.md#files-and-batches)",
    "BatchSettings": "[Files and batches](operations.md#files-and-batches)",
    "RetentionSettings": "[Retention](operations.md#retention)",
    "RequestLogSettings": "[Request log](request-log.md)",
    "CacheSettings": "[Response cache](caching.md)",
    "EvalSettings": "[Rubrics](evals.md#rubrics)",
    "FeedbackSettings": "[Feedback](quality.md#from-a-browser)",
    "RoutingSettings": "[Training the classifier](routing.md#training-the-classifier)",
    "ConsoleSettings": "[Web console](console.md)",
    "RegionSettings": "[Several regions](deploy.md#several-regions)",
    "WorkerSettings": "[Changing models at runtime](operations.md#changing-models-at-runtime)",
}


def settings_page() -> str:
    """The text of the page."""
    groups = [Settings, *(base for base in ApiSettings.__bases__ if base is not Settings)]
    sections = [_section(group, "API: " if group is not Settings else "") for group in groups]
    return _INTRODUCTION + "".join([*map("".join, sections), *_section(WorkerSettings, "")])


def _section(group: type[SettingsGroup], prefix: str) -> Iterator[str]:
    own = [name for name in group.model_fields if name in group.__annotations__]
    title = "All processes" if group is Settings else "Workers" if group is WorkerSettings else _first_line(group)
    yield f"\n## {prefix}{title}\n\n"
    if about := _ABOUT.get(group.__name__):
        yield f"See {about}.\n\n"
    yield "| variable | default | meaning |\n|---|---|---|\n"
    for name in own:
        field = group.model_fields[name]
        variable = field.validation_alias or f"{group.model_config['env_prefix']}{name}".upper()
        meaning = (field.description or "").replace("|", "\\|")
        yield f"| `{variable}` | {_default(field)} | {meaning} |\n"


def _first_line(group: type[SettingsGroup]) -> str:
    line = (group.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    return line[:1].lower() + line[1:]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "derived" if field.annotation is str else "none"
    value: Any = field.default
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"  # as it is written in the environment
    if isinstance(value, Path):
        return f"`{value.relative_to(REPOSITORY)}`"
    if value is None or value in ("", (), {}):
        return "none"
    return f"`{value:.12g}`" if isinstance(value, float) else f"`{value}`"
