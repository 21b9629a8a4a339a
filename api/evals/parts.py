"""The parts of judges of an API process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from api.evals.identity import JudgeIdentity
from api.evals.judgements import JudgementStore
from api.evals.judging import JudgeJobs, Judges
from api.evals.labels import LabelStore
from api.evals.reload import RubricsReload
from api.evals.rubrics import RubricBook
from api.evals.runs import RunStore
from api.evals.samples import SampleStore
from api.evals.sampling import Sampler
from api.evals.scores import ScoreStore
from api.evals.service import EvalService
from api.keys.store import ApiKeyStore
from api.request_log.bodies import Bodies
from shared.config.models.loader import Registry
from shared.runtime.supervisor import Supervisor
from shared.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Evals:
    """What the process runs, and what requests use."""

    service: EvalService
    judges: Judges
    sampler: Sampler
    reload: RubricsReload

    def start(self, supervisor: Supervisor) -> None:
        """Start what runs by itself."""
        supervisor.start("rubrics_reload", self.reload.run())
        supervisor.start("sampler", self.sampler.run())
        supervisor.start("judges", self.judges.run())
        supervisor.start("abandoned_runs", self.judges.run_ending_abandoned())


def build_evals(
    path: Path | None,
    book: RubricBook,
    *,
    database: AsyncEngine,
    region: str,
    keys: ApiKeyStore,
    jobs: JudgeJobs,
    bodies: Bodies,
    registry: Registry,
    metrics: Metrics,
    retention_days: int,
) -> Evals:
    """Build the parts. `path`: of rubrics.yaml. `retention_days`: how long what judges write is kept."""
    runs, judgements, samples = RunStore(database, region), JudgementStore(database), SampleStore(database)
    judges = Judges(book, runs, judgements, samples, JudgeIdentity(database), keys, jobs, bodies, registry, metrics)
    service = EvalService(book, judges, runs, judgements, ScoreStore(database), LabelStore(database), registry)
    return Evals(
        service,
        judges,
        Sampler(book, samples, metrics, retention_days=retention_days),
        RubricsReload(path, book, registry),
    )
