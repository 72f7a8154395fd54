#!/usr/bin/env bash
# Set up a virtual environment and run the fast tests, which say at the end what was left out and what brings it.
# Arguments go to pytest: ./run_tests.sh -m slow
set -euo pipefail
cd "$(dirname "$0")"
source requirements/setup_venv.sh
setup_venv requirements/dev.txt
OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" exec "$VENV/bin/python" -m pytest -q -n auto --dist worksteal "$@"
