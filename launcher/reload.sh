#!/bin/sh
# Tells a running `make up` to read models.yaml again. Its terminal says what has changed, or what is wrong.
home=${HEADRACE_HOME:-.headrace}
pid=$(cat "$home/lock" 2>/dev/null)
if test -z "$pid" || ! kill -HUP "$pid" 2>/dev/null; then
    echo "Headrace is not running in $home. Start it first, in another terminal:  make up" >&2
    exit 1
fi
echo "Sent. The terminal of \`make up\` reports the result."
