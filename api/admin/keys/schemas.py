"""API keys and projects as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api.http.pagination import PageView
from api.keys.principal import DEFAULT_PRIORITY_FLOOR, Scope
from api.keys.store import ApiKey, Project
from shared.domain.answer_options import CacheOptions, ContextOptions, KeyOptions, TokenLimits
from shared.domain.priorities import MAX_PRIORITY

# As for `python -m api.keys`: a name of a key or of a project is one line of text, and a tier is a word.
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
Tier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
MAX_S = 10 * 365 * 24 * 3600
DEFAULT_OVERLAP_S = 24 * 3600
ExpiresIn = Annotated[
    float | None, Field(gt=0, le=MAX_S, description="Seconds until the key expires; it does not by default.")
]


class KeyOptionsBody(BaseModel):
    """What applies to requests with the key, instead of the model's settings or beside them."""

    model_config = ConfigDict(extra="forbid")

    cache: CacheOptions | None = Field(None, description="Answer repeated requests from the response cache.")
    no_cache: bool = Field(False, description="The model's `cache` does not apply.")
    context: ContextOptions | None = Field(None, description="How conversations that outgrow the context are handled.")
    token_limits: TokenLimits | None = None

    def options(self) -> KeyOptions:
        """The options for the key's row."""
        return KeyOptions(
            cache=self.cache, no_cache=self.no_cache, context=self.context, token_limits=self.token_limits
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


class ProjectCreate(BaseModel):
    """A project to create."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "shop", "tier": "free"}]})

    name: Name
    tier: Tier | None = Field(None, description="A class of service, for the rules of routes.")


class ProjectView(BaseModel):
    """A project: it owns jobs, files, batches and responses."""

    object: Literal["project"] = "project"
    name: str
    tier: str | None
    created_at: datetime
    keys: int = Field(description="Its keys that are neither revoked nor expired.")

    @classmethod
    def of(cls, project: Project) -> Self:
        """The JSON form of a project."""
        return cls(name=project.name, tier=project.tier, created_at=project.created_at, keys=project.keys)


class ProjectList(PageView[ProjectView]):
    """A page of projects, by name. `after=last_id` selects the next page: the id is the name."""
