#!/bin/sh
# Builds base images from Debian's archive, with the names that the Dockerfiles and docker-compose.yml use, for a machine
# that has podman and debootstrap and can reach Debian's archive but no image registry. Existing images are kept.
set -eu

python=docker.io/library/python:3.11.14-slim-bookworm
postgres=docker.io/library/postgres:17.6-bookworm
valkey=docker.io/valkey/valkey:8.1.4-alpine
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if ! podman image exists "$python"; then
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip bookworm "$work/root"
    tar -C "$work/root" -c . | podman import - "$python"
fi

# Debian's PostgreSQL, started like the official image, as its user 999: the data folder is created at the first start.
podman image exists "$postgres" || podman build --network host --format docker -t "$postgres" -f - "$work" <<'IMAGE'
FROM docker.io/library/python:3.11.14-slim-bookworm
RUN groupadd -g 999 postgres && useradd -u 999 -g 999 -d /var/lib/postgresql postgres \
    && apt-get update && apt-get install -y --no-install-recommends postgresql && rm -rf /var/lib/apt/lists/*
ENV PGDATA=/var/lib/postgresql/data PATH=/usr/lib/postgresql/15/bin:$PATH
RUN mkdir -p /docker "$PGDATA" && chown postgres:postgres "$PGDATA" && chmod 700 "$PGDATA" && printf '%s\n' '#!/bin/sh' \
    'set -e' \
    'if [ ! -s "$PGDATA/PG_VERSION" ]; then' \
    '  umask 077; echo "$POSTGRES_PASSWORD" > /tmp/pw' \
    '  initdb -U "$POSTGRES_USER" --pwfile=/tmp/pw --auth-host=scram-sha-256 --auth-local=trust; rm /tmp/pw' \
    '  echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"' \
    '  pg_ctl -w start -o "-c listen_addresses= -c unix_socket_directories=/tmp"' \
    '  createdb -h /tmp -U "$POSTGRES_USER" "$POSTGRES_DB"; pg_ctl -w stop' \
    'fi' \
    'exec postgres -c listen_addresses="*" -c unix_socket_directories=/tmp' \
    > /docker/start && chmod 755 /docker/start
STOPSIGNAL SIGINT
VOLUME /var/lib/postgresql/data
CMD ["/docker/start"]
IMAGE

podman image exists "$valkey" || podman build --network host --format docker -t "$valkey" -f - "$work" <<'IMAGE'
FROM docker.io/library/python:3.11.14-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends redis-server && rm -rf /var/lib/apt/lists/* \
    && ln -s redis-server /usr/bin/valkey-server && ln -s redis-cli /usr/bin/valkey-cli && mkdir -p /data \
    && chown 999:1000 /data
WORKDIR /data
VOLUME /data
IMAGE
