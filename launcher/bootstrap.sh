#!/bin/sh
# Find a Python for bootstrap.py: the existing environment's, or else the system's.
#   sh launcher/bootstrap.sh [--dev] [ARGUMENTS FOR THE ENVIRONMENT'S PYTHON]
cd "$(dirname "$0")/.." || exit 1

new_enough='import sys; sys.exit(sys.version_info < (3, 11))'

if [ -n "$PYTHON" ]; then
    if ! "$PYTHON" -c "$new_enough" 2>/dev/null; then
        echo "PYTHON=$PYTHON is not a Python 3.11 or newer. Name another interpreter, or leave PYTHON unset." >&2
        exit 2
    fi
    exec "$PYTHON" -I launcher/bootstrap.py "$@"
fi
for python in .venv/bin/python python3 python3.13 python3.12 python3.11 python3.14; do
    if command -v "$python" >/dev/null 2>&1 && "$python" -I -c "$new_enough" 2>/dev/null; then
        exec "$python" -I launcher/bootstrap.py "$@"
    fi
done
cat >&2 <<MESSAGE
Headrace requires Python 3.11 or newer, which was not found.
On Debian 12+ or Ubuntu 24.04+:  sudo apt install python3 python3-venv
Elsewhere: install it, and set PYTHON:  PYTHON=/path/to/python3 make up
MESSAGE
exit 1
