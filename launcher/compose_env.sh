#!/bin/sh
# Write .env for docker-compose.yml with new secrets. An existing file is not changed. POSIX sh only.
set -eu
cd "$(dirname "$0")/.."
if [ -e .env ]; then
    echo ".env already exists. Its passwords are stored in the volumes; to create a new one, move it away." >&2
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
