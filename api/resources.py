"""The composition root: creates the parts of an API process in order, and closes them in reverse."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from api.admin.budgets.service import BudgetService
from api.admin.fleet.service import FleetService
from api.admin.fleet.store import FleetStore
from api.admin.keys.service import KeyService
from api.admin.limits.service import LimitService
from api.admin.prices.store import PriceListStore
from api.admin.redaction.service import RedactionService
from api.batches.driver import BatchDriver
from api.batches.revoked_work import RevokedWork, RevokedWorkStore
from api.batches.service import BatchService
from api.batches.steps import BatchSteps
from api.batches.store import BatchStore
from api.budgets.budgets import Budgets
from api.budgets.worst_case import WorstCase
from api.cache.response_cache import ResponseCache
from api.cache.store import CacheStore
from api.cache.upkeep import CacheUpkeep
from api.console.data.statistics import JobStatistics
from api.console.data.statistics_store import StatisticsStore
from api.console.key_names import KeyNamesStore
from api.console.parts import add_pages
from api.console.sessions import Sessions
from api.context.learned_ratios import LearnedRatios
from api.context.reported_lengths import ReportedContexts
from api.context.shortening import Shortening
from api.context.summaries import Summaries
from api.context.summary_store import SummaryStore
from api.context.usage_store import UsageStore
from api.context.window import ContextWindow
from api.erasure.files import FileErasure
from api.erasure.ledger_store import LedgerErasure
from api.erasure.pseudonyms import SECRET as PSEUDONYM_SECRET
from api.erasure.pseudonyms import Pseudonyms
from api.erasure.run import DataStores
from api.erasure.service import ErasureService
from api.erasure.store import ErasureStore
from api.evals.parts import build_evals
from api.evals.rubrics import RubricBook
from api.evals.service import EvalService
from api.event_objects import readers
from api.feedback.service import FeedbackService
from api.feedback.store import FeedbackStore
from api.feedback.tokens import FeedbackTokens, SecretStore
from api.files.blobs import Blobs, LocalBlobs
from api.files.cleanup import FileCleanup
from api.files.s3_blobs import SCHEME, S3Blobs
from api.files.service import FileService
from api.files.store import FileStore
from api.http.dependencies import Resources
from api.http.members import MemberReader
from api.jobs.actions import JobActions
from api.jobs.admission import Admission
from api.jobs.media_check import MediaLimits
from api.jobs.queue_estimates import QueueEstimates
from api.jobs.queue_positions import QueuePositions
from api.jobs.queue_store import QueueStore
from api.jobs.quota_store import QuotaStore
from api.jobs.quotas import JobQuotas
from api.jobs.removed_models import RemovedModels
from api.jobs.replay import Replays
from api.jobs.retention import Retention
from api.jobs.retention_store import RetentionStore
from api.jobs.route_candidates import RouteCandidates
from api.jobs.search import JobSearch
from api.jobs.search_store import JobSearchStore
from api.jobs.service import JobService
from api.keys.auth import Authenticator
from api.keys.earlier_work import EarlierWork
from api.keys.open_requests import OpenRequests
from api.keys.revocation import RevocationCheck
from api.keys.store import ApiKeyStore
from api.limits.estimate import TokenEstimator
from api.limits.limiter import RateLimiter
from api.limits.reload import LimitReload
from api.limits.rules import LimitBook
from api.limits.settlement import Settlement
from api.limits.store import LimitStore
from api.monitoring.queue_metrics import QueueMetrics
from api.monitoring.queue_stats import QueueStatsStore
from api.monitoring.readiness import ReadinessCheck
from api.prices.price_sync import PriceSync
from api.quality.service import QualityService
from api.quality.store import QualityStore
from api.request_log.bodies import Bodies
from api.request_log.body_writer import BodyWriter
from api.request_log.data_keys import DataKeys
from api.request_log.encryption import MasterKeys
from api.request_log.levels import LogLevels
from api.request_log.partitions import PartitionUpkeep
from api.request_log.redaction import new_redactor
from api.request_log.store import RequestLogStore
from api.requests.export import Exports, ExportSources
from api.requests.export_store import ExportStore
from api.requests.redactors import Redactors
from api.requests.service import LoggedRequests
from api.requests.store import LoggedRequestStore
from api.responses.limits import ConversationLimits
from api.responses.service import ResponseService
from api.responses.store import ResponseStore
from api.routing.complexity import Complexity
from api.routing.conversations import Conversations
from api.routing.router import Router
from api.savings.service import SavingsService
from api.savings.store import SavingsStore
from api.settings import ApiSettings, StreamSettings
from api.streaming.hub import StreamHub
from api.usage.roll_up import UsageRollUp
from api.usage.service import UsageService
from api.usage.store import UsageReportStore
from api.webhooks.address_guard import AddressPolicy, open_client
from api.webhooks.delivery_store import DeliveryStore
from api.webhooks.dispatcher import MAX_HELD, Dispatcher
from api.webhooks.http_client import MAX_IDLE
from api.webhooks.outbox import Outbox
from api.webhooks.request_webhooks import RequestWebhooks
from api.webhooks.sender import Sender
from api.webhooks.service import WebhookService
from api.webhooks.store import EndpointStore, ProjectSecretStore
from shared.config.models.loader import Registry
from shared.config.models.reload import ModelChanges, ModelsReload, ReloadResult
from shared.postgres.audit_store import AuditStore
from shared.postgres.budget_store import BudgetStore
from shared.postgres.budget_windows import BudgetWindowStore
from shared.postgres.engine import connect
from shared.postgres.job_store import JobStore
from shared.postgres.price_store import PriceStore
from shared.postgres.usage_sums import UsageSums
from shared.recovery.recovery import build_recovery
from shared.redis.connection import CONNECTIONS as REDIS_CONNECTIONS
from shared.redis.connection import connect_redis
from shared.redis.context_lengths import ContextLengths
from shared.redis.conversation_models import ConversationModels
from shared.redis.event_log import EventLog
from shared.redis.job_queue import HintSender, celery_app
from shared.redis.rate_limits import RateWindows
from shared.runtime.reload_signal import ReloadSignal
from shared.runtime.supervisor import Supervisor
from shared.telemetry.loop_lag import measure_loop_lag
from shared.telemetry.metrics import Metrics
from shared.telemetry.scrape_targets import scrape_target
from shared.telemetry.tracing import NO_TRACES, Traces

logger = logging.getLogger(__name__)

DATABASE_CONNECTIONS = 20
# Connections of webhooks: each delivery that a process holds may have one, and others are kept for the next delivery.
WEBHOOK_CONNECTIONS = MAX_HELD + MAX_IDLE
# Files and sockets that a process needs besides its clients' connections. The last number is for what is few: the
# listening socket, event loops, uploads, object storage and the look-up of hosts.
RESERVED_FILES = DATABASE_CONNECTIONS + REDIS_CONNECTIONS + WEBHOOK_CONNECTIONS + 128


@asynccontextmanager
async def open_resources(
    settings: ApiSettings,
    registry: Registry,
    metrics: Metrics,
    reload_signal: ReloadSignal,
    complexity: Complexity,
    rubrics: RubricBook,
    traces: Traces = NO_TRACES,
) -> AsyncIterator[Resources]:
    """Create the application's resources; close them on exit."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, traces.close)
        database = connect(settings.database_url, pool_size=DATABASE_CONNECTIONS)
        stack.push_async_callback(database.dispose)
        redis = connect_redis(settings.redis_url)
        stack.push_async_callback(redis.aclose)

        store, logs = JobStore(database, settings.region), EventLog(redis)
        hints = HintSender(celery_app(settings.redis_url), redis, registry.queue_of)
        stack.push_async_callback(hints.flush)
        recovery = build_recovery(settings, database, redis, logs, hints.put, metrics, traces, registry.engine_of)
        hub = StreamHub(redis, logs, store, metrics, resync_s=settings.resync_s, ping_s=settings.ping_s, send=hints.put)
        queue_estimates = QueueEstimates(QueueStore(database, registry), registry)
        limits = LimitBook()
        limit_store = LimitStore(database)
        limit_reload = LimitReload(limits, limit_store)
        await limit_reload.load_if_available()
        quotas = JobQuotas(QuotaStore(database), settings, metrics, limits)
        context_window = ContextWindow(registry)
        media_limits = MediaLimits(settings.max_part_bytes, settings.max_media_bytes)
        conversation_models = Conversations(ConversationModels(redis), metrics)
        candidates = RouteCandidates(registry, context_window, queue_estimates)
        router = Router(registry, candidates, conversation_models, complexity, metrics)
        summaries = Summaries(
            SummaryStore(database), registry, context_window, metrics, timeout_s=settings.summary_timeout_s
        )
        stack.push_async_callback(summaries.close)
        shortening = Shortening(registry, context_window, summaries, metrics)
        secret = settings.cache_secret.encode() or None
        cache_store = CacheStore(database)
        cache = ResponseCache(registry, cache_store, store, metrics, secret=secret)
        limiter = RateLimiter(
            limits,
            RateWindows(redis),
            TokenEstimator(registry, context_window),
            metrics,
            without_redis=settings.rate_limits_without_redis,
        )
        settlement = Settlement(limiter, limit_store)
        budget_store, budget_windows = BudgetStore(database), BudgetWindowStore(database)
        budgets = Budgets(budget_store, budget_windows, registry, context_window, metrics)
        project_secrets = ProjectSecretStore(database)
        webhook_addresses = AddressPolicy(
            allow_private=settings.webhook_allow_private, allow_http=settings.webhook_allow_http
        )
        request_webhooks = RequestWebhooks(project_secrets, webhook_addresses)
        webhook_client = await stack.enter_async_context(open_client(webhook_addresses))
        admission = Admission(
            registry,
            context_window,
            quotas,
            media_limits,
            metrics,
            router,
            shortening,
            limiter,
            budgets,
            LogLevels(settings.request_log_level, has_key=bool(settings.log_key)),
            request_webhooks,
        )
        jobs = JobService(
            admission=admission,
            store=store,
            logs=logs,
            terminator=recovery.terminator,
            hints=hints,
            hub=hub,
            redis=redis,
            queue_estimates=queue_estimates,
            metrics=metrics,
            traces=traces,
            cache=cache,
            settlement=settlement,
            starts_early=lambda model: settings.early_starts and registry.starts_early(model),
        )
        in_s3 = settings.files.startswith(SCHEME)
        blobs: Blobs = S3Blobs(settings.files) if in_s3 else LocalBlobs(Path(settings.files))
        file_store, batches = FileStore(database, settings.region), BatchStore(database, settings.region)
        file_retention_s = settings.file_retention_s or None
        files = FileService(
            file_store,
            blobs,
            max_bytes=settings.max_file_bytes,
            max_lines=settings.max_file_lines,
            max_project_bytes=settings.project_file_bytes,
            metrics=metrics,
            retention_s=file_retention_s,
        )
        members = MemberReader(
            metrics,
            refuse_unknown=settings.unknown_parameters == "refuse",
            extra_names=registry.extra_body_names,
        )
        keys = ApiKeyStore(database)
        steps = BatchSteps(
            registry=registry,
            members=members,
            admission=admission,
            cache=cache,
            earlier_work=EarlierWork(keys, settings.key_cache_s),
            store=batches,
            blobs=blobs,
            jobs=jobs,
            settlement=settlement,
            terminator=recovery.terminator,
            send=hints.put,
            metrics=metrics,
            max_line_bytes=settings.max_body_bytes,
            max_jobs=settings.batch_jobs,
            retention_s=file_retention_s,
        )
        driver = BatchDriver(batches, steps, poll_s=settings.batch_poll_s, lease_s=settings.lease_s)
        retention = Retention(RetentionStore(database), logs, metrics, retention_s=settings.retention_s)
        supervisor = Supervisor(on_failure=lambda: signal.raise_signal(signal.SIGTERM))
        stack.push_async_callback(supervisor.stop)
        supervisor.start("hint_sender", hints.run())
        supervisor.start("stream_hub", hub.run())
        supervisor.start("queue_positions", QueuePositions(hub, queue_estimates).run())
        supervisor.start("sweeper", recovery.sweeper.run())
        supervisor.start("removed_models", RemovedModels(registry, recovery.store, recovery.terminator, redis).run())
        supervisor.start("batch_driver", driver.run())
        supervisor.start("rate_limits", limit_reload.run())
        supervisor.start("rate_limit_settlement", settlement.run())
        feedback_tokens = FeedbackTokens(SecretStore(database), settings.feedback_token_s)
        await feedback_tokens.load_if_available()
        supervisor.start("feedback_tokens", feedback_tokens.run())
        supervisor.start("file_cleanup", FileCleanup(file_store, blobs).run())
        supervisor.start("retention", retention.run())
        supervisor.start("purge", retention.run_purge())
        supervisor.start("budgets", budgets.run())
        masters = MasterKeys.of(settings.log_key, settings.log_key_previous)
        partitions = PartitionUpkeep(
            database, metrics, body_days=settings.log_retention_days, row_days=settings.log_metadata_days
        )
        supervisor.start("request_log_partitions", partitions.run())
        if masters:
            writer = BodyWriter(
                database,
                DataKeys(database, masters),
                metrics,
                new_redactor,
                retention_days=settings.log_retention_days,
            )
            supervisor.start("request_log_bodies", writer.run())
        upkeep = CacheUpkeep(cache, cache_store, metrics, max_bytes=settings.cache_max_bytes)
        supervisor.start("cache_upkeep", upkeep.run())
        reported_contexts = ReportedContexts(registry, context_window, ContextLengths(redis))
        supervisor.start("reported_contexts", reported_contexts.run())
        learned_ratios = LearnedRatios(registry, UsageStore(database), context_window.estimates, metrics)
        supervisor.start("learned_ratios", learned_ratios.run())
        if settings.console == "on":
            supervisor.start("job_statistics", JobStatistics(StatisticsStore(database)).run())
        price_store = PriceStore(database)
        price_sync = PriceSync(registry, price_store)
        supervisor.start("price_sync", price_sync.run())
        supervisor.start("usage_roll_up", UsageRollUp(UsageSums(database), metrics).run())
        supervisor.start("loop_lag", measure_loop_lag(metrics.loop_lag))

        batch_service = BatchService(batches, files, driver, request_webhooks)
        if settings.revoked_jobs == "cancel":
            revoked_work = RevokedWork(
                RevokedWorkStore(database), jobs, batch_service, interval_s=settings.key_cache_s / 2
            )
            supervisor.start("revoked_work", revoked_work.run())
        authenticator = Authenticator(keys, settings.key_cache_s)
        open_requests = OpenRequests(settings, metrics, limits.stream_limits)
        key_names = KeyNamesStore(database)
        sessions = Sessions(database, settings.key_cache_s, authenticator, open_requests, key_names)
        revocation_check = RevocationCheck(
            keys, (authenticator, sessions.authenticator), open_requests, interval_s=settings.key_cache_s / 2
        )
        supervisor.start("revocation_check", revocation_check.run())
        if settings.console == "on":
            supervisor.start("session_check", sessions.run())

        readiness = ReadinessCheck(store, redis, registry)

        bodies = Bodies(RequestLogStore(database), masters)
        evals = build_evals(
            settings.rubrics,
            rubrics,
            database=database,
            region=settings.region,
            keys=keys,
            jobs=jobs,
            bodies=bodies,
            registry=registry,
            metrics=metrics,
            retention_days=settings.log_retention_days,
        )
        evals.start(supervisor)

        async def use_models(loaded: Registry) -> ReloadResult:
            """Serve these models and routes from now on."""
            windows = await asyncio.to_thread(context_window.read, loaded.models)
            changes = ModelChanges.between(registry.models, loaded.models)
            routes_changed = "" if registry.routes == loaded.routes else "; the routes have changed"
            registry.replace(loaded.models, loaded.routes)
            context_window.use(windows)
            metrics.loaded(loaded.models)
            price_sync.request()
            readiness.added(changes.added)
            logger.info("models.yaml reloaded; %s%s", changes, routes_changed)
            return ReloadResult.APPLIED

        def models_reloaded(result: ReloadResult) -> None:
            metrics.reloaded(result)
            evals.reload.request()  # afterwards, because rubrics name models

        models_reload = ModelsReload(settings.models, use_models, models_reloaded)
        supervisor.start("models_reload", models_reload.run())
        reload_signal.connect(models_reload.request)
        stack.callback(reload_signal.disconnect)

        queue_metrics = QueueMetrics(QueueStatsStore(database, metrics, registry.queue_of), redis, registry, metrics)
        stack.enter_context(scrape_target(settings.metrics_targets, "api", settings.host, settings.port))
        resources = Resources()
        resources.add(StreamSettings, settings)
        resources.add(Registry, registry)
        resources.add(MemberReader, members)
        resources.add(Authenticator, authenticator)
        resources.add(OpenRequests, open_requests)
        resources.add(Sessions, sessions)
        resources.add(Admission, admission)
        resources.add(Router, router)
        resources.add(ContextWindow, context_window)
        resources.add(JobService, jobs)
        search = JobSearch(JobSearchStore(database), keys)
        resources.add(JobSearch, search)
        replays = Replays(store, jobs, EarlierWork(keys, settings.key_cache_s))
        resources.add(Replays, replays)
        resources.add(JobActions, JobActions(search, jobs, replays))
        add_pages(
            resources,
            stack,
            database=database,
            registry=registry,
            key_names=key_names,
            keys=keys,
            store=store,
            logs=logs,
            jobs=jobs,
            search=search,
            replays=replays,
            batches=batch_service,
            files=files,
            limits=limit_store,
            limiter=limiter,
        )
        resources.add(CacheStore, cache_store)
        conversations = ConversationLimits(settings.max_conversation_bytes, settings.max_conversation_messages)
        responses = ResponseService(jobs, ResponseStore(database), store, conversations)
        resources.add(ResponseService, responses)
        resources.add(FileService, files)
        resources.add(BatchService, batch_service)
        outbox = Outbox(database)
        sender = Sender(webhook_client, webhook_addresses, readers(jobs, responses, batch_service, outbox))
        dispatcher = Dispatcher(outbox, sender, metrics, retention_s=settings.webhook_retention_s)
        supervisor.start("webhooks", dispatcher.run())
        supervisor.start("webhook_retention", dispatcher.run_upkeep())
        webhooks = WebhookService(
            EndpointStore(database, settings.region), DeliveryStore(database), project_secrets, request_webhooks
        )
        resources.add(WebhookService, webhooks)
        resources.add(FeedbackTokens, feedback_tokens)
        resources.add(FeedbackService, FeedbackService(FeedbackStore(database), feedback_tokens, keys, metrics))
        resources.add(QualityService, QualityService(QualityStore(database), keys))
        resources.add(SavingsService, SavingsService(SavingsStore(database), registry))
        resources.add(UsageService, UsageService(UsageReportStore(database), keys))
        resources.add(ApiKeyStore, keys)
        resources.add(EvalService, evals.service)
        request_log, export_store = LoggedRequestStore(database), ExportStore(database)
        resources.add(Bodies, bodies)
        resources.add(LoggedRequests, LoggedRequests(database, request_log, bodies, keys, metrics))
        resources.add(ExportStore, export_store)
        sources = ExportSources(request_log, bodies, Redactors(database))
        resources.add(Exports, Exports(sources, export_store, metrics))
        resources.add(WorstCase, WorstCase(registry, context_window))
        resources.add(PriceStore, price_store)
        resources.add(FleetService, FleetService(FleetStore(database), redis, registry))
        resources.add(KeyService, KeyService(keys, has_log_key=bool(masters)))
        resources.add(BudgetService, BudgetService(budget_store, budget_windows, keys, budgets))
        resources.add(AuditStore, AuditStore(database))
        resources.add(PriceListStore, PriceListStore(database))
        resources.add(LimitService, LimitService(limit_store, limit_reload, limiter, registry))
        resources.add(RedactionService, RedactionService(database))
        erasure_files = FileErasure(blobs, max_line_bytes=settings.max_body_bytes)
        user_data = DataStores(ErasureStore(database), LedgerErasure(database), erasure_files, jobs, logs)
        pseudonyms = Pseudonyms(masters, SecretStore(database, PSEUDONYM_SECRET))
        resources.add(ErasureService, ErasureService(user_data, pseudonyms, metrics))
        resources.add(ReadinessCheck, readiness)
        resources.add(QueueMetrics, queue_metrics)
        resources.add(CollectorRegistry, metrics.registry(queue_metrics))
        yield resources
