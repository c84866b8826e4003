#!/bin/sh
# Starts this hospital: its SuperNode and its worker. Needs Python with fedcl {{ version }} (pip install fedcl).
# Opens no port to the outside; it connects to {{ superlink }}.
# Its own data: {{ data or "none; it takes its part of a public data set" }}
set -eu
cd "$(dirname "$0")"
exec "${FEDCL:-{{ fedcl }}}" deploy hospital .
