-- The rows of the pages of usage, limits, requests, quality and webhooks in the pictures of the console.

-- The answers of some jobs, which the API process then writes to the log.
UPDATE jobs SET log_level = 'redacted', output = json_build_array(json_build_object('index', 0, 'finish_reason', 'stop',
        'text', 'Backpressure lets a receiver slow its sender down. Write to ann@example.com for the slides.'))
    WHERE id IN (SELECT id FROM jobs WHERE status = 'completed' ORDER BY finished_at DESC LIMIT 400);

INSERT INTO request_log (job_id, ended_at, project_id, key_id, end_user, request_id, model, requested_model, status,
        error_code, created_at, first_token_at, input_tokens, output_tokens, level, body, refused, refusal_source)
    SELECT id, finished_at, project_id, key_id, end_user, 'req_' || md5(id), model, coalesce(requested_model, model),
        status, error_code, created_at, first_token_at, (usage ->> 'prompt_tokens')::int,
        (usage ->> 'completion_tokens')::int, coalesce(log_level, 'metadata'),
        CASE WHEN log_level IS NULL THEN 'none' ELSE 'pending' END,
        status = 'completed' AND hashtext(id) % 53 = 0, CASE WHEN status = 'completed' THEN 'classifier' END
    FROM jobs WHERE finished_at IS NOT NULL;

INSERT INTO feedback (project_id, job_id, metric, author, value, comment, tags, source, model, requested_model)
    SELECT project_id, job_id, 'rating', coalesce(end_user, ''), to_jsonb(CASE WHEN abs(hashtext(job_id || 'up')) % 100 <
            CASE model WHEN 'qwen3-8b' THEN 62 WHEN 'llama-3-70b' THEN 78 ELSE 85 END THEN 'up' ELSE 'down' END),
        CASE WHEN hashtext(job_id) % 5 = 0 THEN 'That is not what I asked for' END, '{}', 'token', model, requested_model
    FROM request_log WHERE status = 'completed' AND abs(hashtext(job_id || 'feedback')) % 9 = 0;

INSERT INTO usage_sums (starts_at, project_id, key_id, end_user, kind, requested_model, model, service_tier, batch,
        requests, cached_requests, attempts, input_fresh, input_cache_read, input_cache_write_5m, input_cache_write_1h,
        output_text, output_reasoning, cost, charge, saved, unpriced)
    SELECT date_bin('15 minutes', now() - interval '1 hour' * hours, '2000-01-01'), k.project_id, k.id, users, 'generate',
        'auto', m.model, 'default', false, m.n, m.n / 6, m.n, m.n * 500, m.n * 242, 0, 0, m.n * 300, 0,
        m.n * m.price, m.n * m.price, m.n * m.price / 7, 0
    FROM generate_series(1, 24 * 28, 6) AS hours, unnest(ARRAY['4021', '4177', '4502', '4711', '4844']) AS users
    CROSS JOIN LATERAL (SELECT api_keys.* FROM api_keys JOIN projects ON projects.id = project_id
        WHERE projects.name IN ('team-docs', 'team-search') AND api_keys.name = projects.name) AS k
    CROSS JOIN LATERAL (VALUES
        ('llama-3-70b', 6 + abs(hashtext(users || hours::text)) % 30, 0.0011),
        ('qwen3-8b', 10 + abs(hashtext(hours::text || users)) % 60, 0.0002),
        ('claude-sonnet', 1 + abs(hashtext(users || 'c' || hours)) % 4, 0.0093)) AS m (model, n, price);

INSERT INTO budgets (project_id, key_id, end_user, period, time_zone, limit_usd, hard, on_exceed)
    SELECT id, NULL::bigint, NULL, 'month', 'Europe/Berlin', 400, true, 'downgrade' FROM projects WHERE name = 'team-search'
    UNION ALL SELECT id, NULL, '*', 'day', 'UTC', 2, true, 'reject' FROM projects WHERE name = 'team-docs'
    UNION ALL SELECT id, NULL, NULL, 'week', 'UTC', 50, false, 'reject' FROM projects WHERE name = 'team-docs'
    ORDER BY 1, 6;

INSERT INTO budget_windows (budget_id, end_user, starts_at, ends_at, spent, reserved)
    SELECT id, CASE WHEN end_user IS NULL THEN '' ELSE '4711' END, date_trunc(period, now() AT TIME ZONE time_zone)
            AT TIME ZONE time_zone,
        (date_trunc(period, now() AT TIME ZONE time_zone) + ('1 ' || period)::interval) AT TIME ZONE time_zone,
        limit_usd * CASE period WHEN 'month' THEN 0.83 WHEN 'day' THEN 0.97 ELSE 0.41 END, limit_usd * 0.01
    FROM budgets;

INSERT INTO limits (project_id, end_user, model, requests_per_minute, tokens_per_minute, concurrent_jobs, mode)
    SELECT NULL::bigint, NULL, NULL, 1000, NULL::int, 200, 'hard'
    UNION ALL SELECT id, '*', NULL, 20, NULL, NULL, 'hard' FROM projects WHERE name = 'team-search'
    UNION ALL SELECT id, NULL, 'llama-3-70b', NULL, 400000, NULL, 'soft' FROM projects WHERE name = 'team-docs';
