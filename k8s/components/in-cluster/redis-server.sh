#!/bin/sh
# Start Valkey with a user for each role, which can do what that role needs and nothing else. Used by Kubernetes and by
# docker-compose.yml. The user `default` is for operators.
#   REDIS_PASSWORD, REDIS_API_PASSWORD, REDIS_WORKER_PASSWORD, REDIS_FLOWER_PASSWORD: the users' passwords
set -eu
umask 077
# Reading and writing of values. Not: administration, other databases' or all keys, functions, and flushing scripts.
data='+@read +@write +@pubsub +@transaction +@connection +@scripting +time -@admin -@dangerous -function -script|flush
  -script|kill -script|debug -scan -randomkey -dbsize'
acl=${REDIS_ACL_FILE:-/tmp/users.acl}
{
    echo "user default on >$REDIS_PASSWORD ~* &* +@all"
    # Event logs of jobs, queues, and the channels of events and cancellations.
    echo "user api on >$REDIS_API_PASSWORD ~hr:* ~headrace.* &hr:* $data" | tr '\n' ' '; echo
    # The same, and Celery's remote control and events. Patterns that are subscribed to must be equal to these: database 0.
    echo "user worker on >$REDIS_WORKER_PASSWORD ~hr:* ~headrace.* ~_kombu.* ~*.pidbox* ~celeryev.*" \
        "&hr:* &/0.celery.pidbox &/0.celeryev/* $data" | tr '\n' ' '; echo
    # Remote control, events, and lengths of queues. No job's data.
    echo "user flower on >$REDIS_FLOWER_PASSWORD %R~headrace.* %R~celery* ~_kombu.* ~*.pidbox* ~celeryev.*" \
        "&/0.celery.pidbox &/0.celeryev/* $data" | tr '\n' ' '; echo
} >"$acl"
unset REDIS_PASSWORD REDIS_API_PASSWORD REDIS_WORKER_PASSWORD REDIS_FLOWER_PASSWORD
# noeviction: Redis is a queue here, not a cache. Deleted outputs stay in the append-only file until it is rewritten, which
# happens when it has grown by this percentage since the last time, and is larger than this size.
exec valkey-server --aclfile "$acl" --appendonly yes --appendfsync everysec --maxmemory 1gb \
    --maxmemory-policy noeviction --auto-aof-rewrite-percentage 50 --auto-aof-rewrite-min-size 16mb "$@"
