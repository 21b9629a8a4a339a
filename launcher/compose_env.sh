#!/bin/sh
# Write .env for docker-compose.yml, with fresh secrets; one that is there is left as it is. Needs nothing but sh.
set -eu
cd "$(dirname "$0")/.."
if [ -e .env ]; then
    echo ".env is there already; to make another, move it away (its passwords are in the volumes)." >&2
    exit 1
fi
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
umask 077
while IFS= read -r line; do
    case $line in
    HEADRACE_API_KEY=*) echo "HEADRACE_API_KEY=hr_$(secret | cut -c1-8)_$(secret)" ;;
    *=GENERATED) echo "${line%GENERATED}$(secret)" ;;
    *) echo "$line" ;;
    esac
done <.env.example >.env.new
mv .env.new .env
echo "Wrote .env. Start with:  docker compose up --build"
