#!/usr/bin/env bash
# Gets the other programs: supervisor, circus, huey, procrastinate and pgqueuer into .cache/bench-venv (never into the project's environment),
# s6, runit and gcc from Debian (as root), or says how to get them.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-.venv/bin/python}"
[ -x "$python" ] || python=python3
[ -x .cache/bench-venv/bin/python ] || "$python" -m venv .cache/bench-venv
.cache/bench-venv/bin/pip install --quiet "supervisor==4.3.0" "circus==0.19.0" "huey==3.5.4" \
	"procrastinate==3.10.0" "psycopg[binary]==3.3.9" "pgqueuer==1.6.0" "asyncpg==0.32.0"

missing=()
[ -x /usr/bin/s6-svscan ] || missing+=(s6)
[ -x /usr/bin/runsvdir ] || missing+=(runit)
command -v gcc >/dev/null || missing+=(gcc libc6-dev)
if [ "${#missing[@]}" -eq 0 ]; then
	echo "everything is there"
elif [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
	apt-get install --yes --no-install-recommends "${missing[@]}"
else
	echo "as root: apt-get install --no-install-recommends ${missing[*]} (what is missing is left out of the tables)" >&2
fi
