"""Valid keys: what requests are authenticated by. `api.keys.store` runs the statements."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ARRAY, BigInteger, ColumnElement, Text, and_, bindparam, func, or_, select, update

from api.keys.principal import Principal, Scope
from api.keys.stored_options import read_options
from shared.domain.errors import UnreadableRow
from shared.domain.project_options import ProjectOptions
from shared.postgres.prepared import Prepared
from shared.postgres.store import seconds
from shared.postgres.tables import ApiKeyRow, ProjectRow

logger = logging.getLogger(__name__)

# `last_used_at` lags behind a key's last use by at most this much.
LAST_USED_RESOLUTION_S = 60.0


@dataclass(frozen=True, slots=True)
class ValidKey:
    """The principal of a valid key, and the seconds until the key expires (None: it does not expire)."""

    principal: Principal
    expires_in_s: float | None


def key_is_valid() -> ColumnElement[bool]:
    """Condition: a key is neither revoked nor expired."""
    return and_(ApiKeyRow.revoked_at.is_(None), or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > func.now()))


PROJECT_OPTIONS = ProjectRow.options.label("project_options")
# What `read_valid_key` reads, of a valid key joined with its project.
VALID_KEY_COLUMNS = (
    ApiKeyRow.id,
    ApiKeyRow.project_id,
    ApiKeyRow.scopes,
    ApiKeyRow.priority_floor,
    ApiKeyRow.options,
    ProjectRow.tier,
    PROJECT_OPTIONS,
    func.extract("epoch", ApiKeyRow.expires_at - func.now()).label("expires_in_s"),
)


def read_valid_key(row: Any) -> ValidKey | UnreadableRow:
    """The valid key of a row with `VALID_KEY_COLUMNS`. The error, which is logged: this version cannot read it."""
    try:
        options = read_options(row.id, row.options)
    except UnreadableRow as error:  # one key must not fail the lookups of others
        logger.error("key=key_%d cannot be used: %s", row.id, error.reason)
        return error
    left = None if row.expires_in_s is None else float(row.expires_in_s)
    principal = Principal(
        row.project_id,
        row.id,
        frozenset(scopes_of(row)),
        priority_floor=row.priority_floor,
        options=options,
        tier=row.tier,
        project_log_level=ProjectOptions.read(row.project_options).log_level,
    )
    return ValidKey(principal, left)


def scopes_of(row: Any) -> tuple[Scope, ...]:
    """The scopes of a key, without those that only a newer version knows."""
    return tuple(scope for scope in Scope if scope.value in row.scopes)


def _find() -> Prepared:
    valid = (ApiKeyRow.sha256 == func.any(bindparam("digests", type_=ARRAY(Text))), key_is_valid())
    stale = (
        select(ApiKeyRow.id)
        .where(
            *valid,
            or_(
                ApiKeyRow.last_used_at.is_(None),
                ApiKeyRow.last_used_at < func.now() - seconds(LAST_USED_RESOLUTION_S),
            ),
        )
        .with_for_update(skip_locked=True, key_share=True)
        .scalar_subquery()
    )
    used = update(ApiKeyRow).where(ApiKeyRow.id.in_(stale)).values(last_used_at=func.now()).returning(ApiKeyRow.id)
    return Prepared(
        select(ApiKeyRow.sha256, *VALID_KEY_COLUMNS)
        .join(ProjectRow, ProjectRow.id == ApiKeyRow.project_id)
        .where(*valid)
        .add_cte(used.cte("used"))
    )


# The valid keys with these digests, whose use is recorded.
FIND = _find()
VALID_SCOPES = Prepared(
    select(ApiKeyRow.id, ApiKeyRow.scopes).where(
        ApiKeyRow.id == func.any(bindparam("ids", type_=ARRAY(BigInteger))), key_is_valid()
    )
)
