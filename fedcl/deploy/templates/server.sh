#!/bin/sh
# Starts the SuperLink and registers the hospitals' keys. Needs Python with fedcl {{ version }} (pip install fedcl).
# Listens on {{ bind }}:{{ port }}, for the hospitals and for `fedcl simulate`. Keep that port on a private network:
# whoever reaches it can submit code to every hospital.
set -eu
cd "$(dirname "$0")"
exec "${FEDCL:-{{ fedcl }}}" deploy server .
