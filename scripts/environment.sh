# Sourced by scripts/test, scripts/demo and .ci/run: finds a Python, and keeps a virtual environment for it.
# Needs bash, Python 3.11 or newer and a package registry. Set PYTHON to choose the Python.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# find_python NAME ...: prints the path of the first that is new enough and can make virtual environments.
find_python() {
    local name candidates=()
    for name in "$@"; do
        candidates+=("$name")
        if command -v pyenv >/dev/null; then  # the versions it holds need not be on the path
            candidates+=("$(pyenv root)/versions/${name#python}".*/bin/python)
        fi
    done
    for name in "${candidates[@]}"; do
        "$name" -c 'import ensurepip, sys, venv; assert sys.version_info >= (3, 11); print(sys.executable)' \
            2>/dev/null && return
    done
    echo "None of these is Python 3.11 or newer with venv: $*. Install one, or set PYTHON to its path." >&2
    return 1
}

# prepare_environment EXTRA: installs the package with that extra ("" for none) at the tested versions, if it is not there
# yet, and sets `python` to the environment's interpreter.
prepare_environment() {
    local extra="$1" names=(python3.12 python3.13 python3.11 python3) base version constraints environment stamp wanted
    [[ -n "${PYTHON:-}" ]] && names=("$PYTHON")
    base="$(find_python "${names[@]}")" || return
    version="$("$base" -c 'import sys; print(f"{sys.version_info[0]}.{sys.version_info[1]}")')"
    constraints="$root/constraints/py312-jax0.12.0.txt"
    [[ "$version" == 3.11 ]] && constraints="$root/constraints/py311-jax0.10.2.txt"
    environment="$root/.venv-$version"
    python="$environment/bin/python"
    stamp="$environment/installed-${extra:-nothing-extra}"
    # The root is hashed too: the environment of a checkout that was copied still imports the old place.
    wanted="$({ echo "$root"; "$base" -VV; cat "$root/pyproject.toml" "$constraints"; } | cksum)"
    if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then
        return
    fi
    echo "Installing into ${environment##*/} (about a minute) ..." >&2
    "$base" -m venv "$environment" || return
    "$python" -m pip install --quiet --disable-pip-version-check -c "$constraints" \
        -e "$root${extra:+[$extra]}" >&2 || return
    echo "$wanted" >"$stamp"
}
