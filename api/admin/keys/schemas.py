"""API keys and projects as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api.http.pagination import PageView
from api.keys.changes import (
    MAX_NAME,
    NAME,
    NEVER,
    UNCHANGED,
    KeyChanges,
    ProjectChanges,
    changed_options,
    changed_project_options,
)
from api.keys.principal import DEFAULT_PRIORITY_FLOOR, Scope
from api.keys.store import ApiKey, Project
from shared.domain.answer_options import (
    MAX_CACHE_TTL_S,
    NO_KEY_OPTIONS,
    AllowedModels,
    CacheOptions,
    ContextOptions,
    KeyOptions,
    TokenLimits,
)
from shared.domain.log_level import LogLevel
from shared.domain.priorities import MAX_PRIORITY
from shared.domain.project_options import NO_PROJECT_OPTIONS, ProjectOptions

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME, pattern=rf"^{NAME}$")]
# As for `python -m api.keys`, a tier is a word.
Tier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
MAX_S = 10 * 365 * 24 * 3600
DEFAULT_OVERLAP_S = 24 * 3600
ExpiresIn = Annotated[
    float | None, Field(gt=0, le=MAX_S, description="Seconds until the key expires; it does not by default.")
]


_LOG_LEVEL = (
    "At most this is kept in the request log. The strictest of the levels of the installation, the project, the key and"
    " the request applies."
)


class KeyOptionsBody(BaseModel):
    """What applies to requests with the key, instead of the model's settings or beside them."""

    model_config = ConfigDict(extra="forbid")

    cache: CacheOptions | None = Field(None, description="Answer repeated requests from the response cache.")
    no_cache: bool = Field(False, description="The model's `cache` does not apply.")
    context: ContextOptions | None = Field(None, description="How conversations that outgrow the context are handled.")
    token_limits: TokenLimits | None = None
    allowed_models: AllowedModels | None = None
    log_level: LogLevel | None = Field(None, description=_LOG_LEVEL)

    def options(self) -> KeyOptions:
        """The options for the key's row."""
        return KeyOptions(
            cache=self.cache,
            no_cache=self.no_cache,
            context=self.context,
            token_limits=self.token_limits,
            allowed_models=self.allowed_models,
            log_level=self.log_level,
        )


class ApiKeyCreate(BaseModel):
    """A key to create."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "web", "project": "shop", "scopes": ["inference"], "expires_in_s": 7776000}]
        },
    )

    name: Name
    project: Name | None = Field(
        None,
        description="The project that the key belongs to, created if it is missing. By default a new one with the"
        " key's name, which must not exist.",
    )
    scopes: list[Scope] = Field([Scope.INFERENCE], min_length=1, description="What the key may be used for.")
    expires_in_s: ExpiresIn = None
    priority_floor: int = Field(
        DEFAULT_PRIORITY_FLOOR, ge=0, le=MAX_PRIORITY, description="The most urgent priority that its jobs may have."
    )
    options: KeyOptionsBody | None = None


class CacheChanges(BaseModel):
    """Changes of the options of the response cache. Null: the default."""

    model_config = ConfigDict(extra="forbid")

    ttl: Annotated[int, Field(ge=1, le=MAX_CACHE_TTL_S)] | None = None
    scope: Literal["project", "key", "user"] | None = None


class ContextChanges(BaseModel):
    """Changes of how conversations that outgrow the context are handled. Null: the default."""

    model_config = ConfigDict(extra="forbid")

    strategy: Literal["error", "sliding_window", "summarize"] | None = None
    model: Annotated[str, Field(min_length=1)] | None = None
    trigger: Annotated[float, Field(gt=0, le=1)] | None = None
    target: Annotated[float, Field(gt=0, le=1)] | None = None
    trigger_tokens: Annotated[int, Field(ge=1)] | None = None


class TokenLimitsChanges(BaseModel):
    """Changes of limits of tokens. Null: no limit."""

    model_config = ConfigDict(extra="forbid")

    default_output: Annotated[int, Field(ge=1)] | None = None
    max_output: Annotated[int, Field(ge=1)] | None = None
    max_input: Annotated[int, Field(ge=1)] | None = None
    on_exceed: Literal["clamp", "reject"] | None = None


class KeyOptionsChanges(BaseModel):
    """Changes of a key's options. What is absent remains as it is; null removes a group, or a member of it."""

    model_config = ConfigDict(extra="forbid")

    cache: CacheChanges | None = Field(None, description="Replaces `no_cache`; `{}` turns the cache on.")
    no_cache: bool | None = Field(None, description="If true, replaces `cache`.")
    context: ContextChanges | None = None
    token_limits: TokenLimitsChanges | None = None
    allowed_models: AllowedModels | None = Field(None, description="Replace the allowed ones; null allows all.")
    log_level: LogLevel | None = Field(None, description=f"{_LOG_LEVEL} Null: the key has none.")


class ApiKeyUpdate(BaseModel):
    """Changes of a key: a JSON Merge Patch (RFC 7396). What is absent remains as it is."""

    is_merge_patch: ClassVar[bool] = True
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"priority_floor": 0, "options": {"token_limits": {"max_output": 1000, "on_exceed": "clamp"}}}]
        },
    )

    # The defaults stand for absent fields, which cannot be null; they are never read.
    name: Name = Field(default_factory=str)
    scopes: list[Scope] = Field(default_factory=list, min_length=1, description="Replace the key's scopes.")
    expires_in_s: float | None = Field(
        None, gt=0, le=MAX_S, description="Seconds from now until the key expires; null: it does not."
    )
    priority_floor: int = Field(
        default_factory=int, ge=0, le=MAX_PRIORITY, description="The most urgent priority that its jobs may have."
    )
    options: KeyOptionsChanges | None = Field(None, description="Null removes all options.")

    def changes(self) -> KeyChanges:
        """The changes of the key's row."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        if given.get("expires_in_s", NEVER) is None:
            given["expires_in_s"] = NEVER
        if "options" in given:
            given["options"] = self._changed_options
        return KeyChanges(**given)

    def _changed_options(self, options: KeyOptions) -> KeyOptions:
        if self.options is None:
            return NO_KEY_OPTIONS
        return changed_options(options, self.options.model_dump(exclude_unset=True))


class ApiKeyRotate(BaseModel):
    """How a key is replaced."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"overlap_s": 86400}]})

    overlap_s: float = Field(DEFAULT_OVERLAP_S, ge=0, le=MAX_S, description="How long the old key remains valid.")
    expires_in_s: ExpiresIn = None


class ApiKeyView(BaseModel):
    """A key, without the key itself: only its hash is stored."""

    id: str
    object: Literal["api_key"] = "api_key"
    name: str
    prefix: str | None = Field(description="The start of the key, by which it is recognized; null if it was chosen.")
    project: str
    scopes: list[Scope]
    priority_floor: int
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="Accurate to a minute.")
    options: KeyOptions | None = Field(description="Null if this version cannot read them.")

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        """The JSON form of a key."""
        names = cls.model_fields.keys() - {"object", "prefix", "secret", "scopes"}
        values = {name: getattr(key, name) for name in names}
        return cls(prefix=key.prefix or None, scopes=list(key.scopes), **values)


class ApiKeyCreated(ApiKeyView):
    """A new key. This is the only response that has the key itself."""

    secret: str = Field("", description="The key. It is shown once.")


class ApiKeyList(PageView[ApiKeyView]):
    """A page of keys, newest first."""


class ProjectOptionsBody(BaseModel):
    """What applies to all jobs of a project. In a change, what is absent remains as it is, and null removes it."""

    model_config = ConfigDict(extra="forbid")

    log_level: LogLevel | None = Field(None, description=f"{_LOG_LEVEL} Null: the project has none.")

    def patch(self) -> dict[str, Any]:
        """The members that the body names, as `ProjectOptions` has them."""
        return self.model_dump(exclude_unset=True)


class ProjectCreate(BaseModel):
    """A project to create."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"name": "newsletter", "tier": "free", "options": {"log_level": "redacted"}}]},
    )

    name: Name
    tier: Tier | None = Field(None, description="A class of service, for the rules of routes.")
    options: ProjectOptionsBody | None = None

    def project_options(self) -> ProjectOptions:
        """The options for the project's row."""
        return changed_project_options(NO_PROJECT_OPTIONS, self.options.patch() if self.options is not None else {})


class ProjectUpdate(BaseModel):
    """Changes of a project: a JSON Merge Patch (RFC 7396). What is absent remains as it is."""

    is_merge_patch: ClassVar[bool] = True
    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"tier": "free", "options": {"log_level": "redacted"}}]}
    )

    tier: Tier | None = Field(None, description="A class of service, for the rules of routes. Null: none.")
    options: ProjectOptionsBody | None = Field(None, description="Null removes all options.")

    def changes(self) -> ProjectChanges:
        """The changes of the project's row."""
        return ProjectChanges(
            tier=self.tier if "tier" in self.model_fields_set else UNCHANGED,
            options=self._changed_options if "options" in self.model_fields_set else None,
        )

    def _changed_options(self, options: ProjectOptions) -> ProjectOptions:
        return NO_PROJECT_OPTIONS if self.options is None else changed_project_options(options, self.options.patch())


class ProjectView(BaseModel):
    """A project: it owns jobs, files, batches and responses."""

    object: Literal["project"] = "project"
    name: str
    tier: str | None
    created_at: datetime
    keys: int = Field(description="Its keys that are neither revoked nor expired.")
    options: ProjectOptions

    @classmethod
    def of(cls, project: Project) -> Self:
        """The JSON form of a project."""
        return cls(
            name=project.name,
            tier=project.tier,
            created_at=project.created_at,
            keys=project.keys,
            options=project.options,
        )


class ProjectList(PageView[ProjectView]):
    """A page of projects, by name. `after=last_id` selects the next page: the id is the name."""
