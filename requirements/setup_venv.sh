# Sourced by quickstart.sh and run_tests.sh: a virtual environment in $VENV (.venv) with what a requirements file lists.
# Python 3.10 to 3.13; PYTHON names another interpreter.
VENV="${VENV:-.venv}"
setup_venv() {
    [ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
    local installed="$VENV/${1//\//-}"
    if ! cmp -s "$1" "$installed"; then
        echo "installing $1 into $VENV (PyTorch is large: a few minutes the first time)"
        "$VENV/bin/python" -m pip install --quiet -r "$1"
        cp "$1" "$installed"
    fi
}
