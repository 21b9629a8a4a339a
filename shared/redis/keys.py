"""Every Redis key and channel of Headrace, except Celery's."""


def log(job_id: str) -> str:
    """Stream: the job's events, entry id `<seq>-0`, fields `t` type, `e` JSON, `k` token ids, `c` cursor, `w` time.

    Only workers read the ids and the cursor. The last event that was written together with others has the time."""
    return f"hr:log:{job_id}"


def fence(job_id: str) -> str:
    """Hash: `attempt` is the one that may write to the log, `seq` is that of the log's last event, `generated` is the
    last attempt that wrote a token, and `shown` exists if a reader has read the log or waits for its first event."""
    return f"hr:fence:{job_id}"


def followers(job_id: str) -> str:
    """Set: ids of the API processes with a reader on the job."""
    return f"hr:followers:{job_id}"


def carried_request(job_id: str) -> str:
    """String: the request of a new job, for the worker that gets its first hint. It expires soon, or is taken."""
    return f"hr:request:{job_id}"


def taken_requests(worker: str) -> str:
    """List: the new jobs whose requests a worker took last, the latest first."""
    return f"hr:taken:{worker}"


def api_channel(api_id: str) -> str:
    """Channel: live events for one API process."""
    return f"hr:api:{api_id}"


# Sent on a worker's channel: its row has changed, and it should send a heartbeat now.
HEARTBEAT = "heartbeat"


def worker_channel(worker_id: str) -> str:
    """Channel: ids of jobs that this worker must cancel, and `HEARTBEAT`."""
    return f"hr:worker:{worker_id}"


def declared_model(model: str) -> str:
    """String: exists while an API process declares the model in its models.yaml."""
    return f"hr:model:{model}"


def write_check() -> str:
    """String: written by readiness checks, which a server that cannot write must fail."""
    return "hr:write-check"


def context_length(source: str) -> str:
    """String: the context length in tokens that an upstream reports."""
    return f"hr:context:{source}"


def context_refusal(source: str) -> str:
    """String: present if a request was refused a short time ago because of the context length."""
    return f"hr:context_refusal:{source}"


def conversation_model(conversation: str) -> str:
    """Hash: the `model` that a route chose for a request of a conversation, and the `floor` of the conversation."""
    return f"hr:conversation:{conversation}"


def conversation_name(name: str) -> str:
    """String: the id of the request with this name, for `conversation_model`."""
    return f"hr:conversation_name:{name}"


def rate_window(project_id: int, scope: str, unit: str) -> str:
    """Hash: what was taken from a rate limit in each second of the last minute; see `rate_limits.lua`.

    The scope is that of a limit within the project, the unit `requests` or `tokens`. All windows of a project have the
    same hash tag.
    """
    return f"hr:rate:{{{project_id}}}{scope}:{unit}"
