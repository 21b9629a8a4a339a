#!/bin/sh
# Print the Secrets for servers in the cluster (components/in-cluster), with new passwords:
#   sh k8s/secrets.sh NAMESPACE | kubectl create -f -
# Use `create`, not `apply`: existing passwords are stored in the volumes and must not change.
set -eu
namespace=${1:?usage: sh k8s/secrets.sh NAMESPACE}
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
postgres=$(secret) app=$(secret) redis=$(secret) api=$(secret) worker=$(secret) flower=$(secret)
cat <<YAML
apiVersion: v1
kind: Namespace
metadata: {name: $namespace, labels: {pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: v1
kind: Secret
metadata: {name: headrace-servers, namespace: $namespace}
stringData:
  POSTGRES_PASSWORD: $postgres
  REDIS_PASSWORD: $redis
  REDIS_API_PASSWORD: $api
  REDIS_WORKER_PASSWORD: $worker
  REDIS_FLOWER_PASSWORD: $flower
---
apiVersion: v1
kind: Secret
metadata: {name: headrace, namespace: $namespace}
stringData:
  OWNER_DATABASE_URL: postgresql://headrace:$postgres@postgres:5432/headrace
  ROLE_PASSWORD: $app
  DATABASE_URL: postgresql://headrace_app:$app@postgres:5432/headrace
  API_REDIS_URL: redis://api:$api@redis:6379/0
  WORKER_REDIS_URL: redis://worker:$worker@redis:6379/0
  FLOWER_REDIS_URL: redis://flower:$flower@redis:6379/0
  CACHE_SECRET: $(secret)
---
apiVersion: v1
kind: Secret
metadata: {name: headrace-flower, namespace: $namespace}
stringData: {FLOWER_BASIC_AUTH: "admin:$(secret)"}
YAML
