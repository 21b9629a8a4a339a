#!/bin/sh
# `headrace` in the API's image: talks to the API of its container, unless HEADRACE_URL or --url says otherwise.
: "${HEADRACE_URL:=http://127.0.0.1:${HEADRACE_PORT:-8000}}"
export HEADRACE_URL
PYTHONPATH=/app exec python -m cli "$@"
