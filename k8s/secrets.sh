#!/bin/sh
# Print the Secrets for servers in the cluster (components/in-cluster), with new passwords:
#   sh k8s/secrets.sh NAMESPACE | kubectl create -f -
# Use `create`, not `apply`: existing passwords are stored in the volumes and must not change.
set -eu
namespace=${1:?usage: sh k8s/secrets.sh NAMESPACE}
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
postgres=$(secret) redis=$(secret)
cat <<YAML
apiVersion: v1
kind: Namespace
metadata: {name: $namespace, labels: {pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: v1
kind: Secret
metadata: {name: headrace-servers, namespace: $namespace}
stringData: {POSTGRES_PASSWORD: $postgres, REDIS_PASSWORD: $redis}
---
apiVersion: v1
kind: Secret
metadata: {name: headrace, namespace: $namespace}
stringData:
  DATABASE_URL: postgresql://headrace:$postgres@postgres:5432/headrace
  REDIS_URL: redis://:$redis@redis:6379/0
---
apiVersion: v1
kind: Secret
metadata: {name: headrace-flower, namespace: $namespace}
stringData: {FLOWER_BASIC_AUTH: "admin:$(secret)"}
YAML
