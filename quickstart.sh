#!/usr/bin/env bash
# From nothing to a policy: set up, record 20 demos if there are none, train on them, fine-tune with a (scripted) human
# in the loop, evaluate 100 unseen episodes without help. Arguments go to train_hybrid.py: ./quickstart.sh --seed 1
# This task waits for every update, and learns as much from a step by fewer ones (docs/performance.md, section 6):
# --cta_ratio 1 makes none that trains critics only; --batch_size 64 is what a CPU has by default.
set -euo pipefail
cd "$(dirname "$0")"
source requirements/setup_venv.sh
setup_venv requirements.txt
PYTHON="$VENV/bin/python"
DATA="${DATA:-./data}" OUT="${OUT:-./runs/quickstart}"
# a recording that was interrupted goes on: without --resume it would be refused
[ -e "$DATA/demos.pkl" ] || "$PYTHON" record_demos.py --output_dir "$DATA" $([ ! -e "$DATA/episodes" ] || echo --resume)
"$PYTHON" train_hybrid.py --demo_paths "$DATA/demos.pkl" --image_keys image wrist \
    --setup_mode single-arm-learned-gripper --save_dir "$OUT" --max_steps 8000 --batch_size 64 --cta_ratio 1 "$@"
