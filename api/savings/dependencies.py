"""FastAPI dependencies of the savings report."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

from api.http.dependencies import resource
from api.savings.service import SavingsService

CurrentSavings = Annotated[SavingsService, Depends(resource(SavingsService))]
