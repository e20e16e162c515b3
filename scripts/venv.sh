# Sourced by the other scripts with $root set: makes $root/.venv and installs mlxchat into it.

find_python() {
  for python in python3 python3.14 python3.13 python3.12 python3.11; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$python"
      return
    fi
  done
  echo "Error: no Python 3.11 or newer found; install one as python3" >&2
  return 1
}

# Which build of MLX this machine needs: Metal is in the plain wheel, Linux needs one extra.
mlx_extra() {
  if [ "$(uname -s)" = Darwin ]; then
    return
  elif nvidia-smi >/dev/null 2>&1; then
    echo cuda
  else
    echo cpu
  fi
}

# Runs a command quietly; its output is shown only when it fails.
quietly() {
  log=$(mktemp)
  if "$@" >"$log" 2>&1; then
    rm -f "$log"
  else
    cat "$log" >&2
    rm -f "$log"
    echo "Error: '$*' failed; its output is above" >&2
    return 1
  fi
}

# ensure_venv [EXTRA]: installs the package, editable, when pyproject.toml changed since the last time.
ensure_venv() {
  extras=$(mlx_extra)
  extras=${extras}${1:+${extras:+,}$1}
  bin=$root/.venv/bin
  stamp="$root/.venv/installed-$extras"
  wanted=$(cksum <"$root/pyproject.toml")
  # An installation with more extras, as scripts/test makes it, will do too.
  if [ -x "$bin/python" ] && grep -qsx "$wanted" "$stamp"*; then
    return
  fi
  python=$(find_python) || return 1
  echo "Installing mlxchat${extras:+ [$extras]} into .venv; the first time takes a minute." >&2
  if ! "$bin/python" -m pip --version >/dev/null 2>&1; then
    quietly "$python" -m venv --clear "$root/.venv" || return 1
  fi
  quietly "$bin/python" -m pip install --disable-pip-version-check \
    -e "$root${extras:+[$extras]}" || return 1
  # The mlx and mlx-cpu wheels share one folder: an upgrade of the first removes files of the second.
  if ! "$bin/python" -c 'import mlx.core' 2>/dev/null && [ "$(uname -s)" != Darwin ]; then
    quietly "$bin/python" -m pip install --disable-pip-version-check --force-reinstall \
      -e "$root[$extras]" || return 1
  fi
  echo "$wanted" >"$stamp"
}
