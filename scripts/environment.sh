# The environment that every script here runs in. Source it, then call `environment_ready`:
#
#   . "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
#   environment_ready            # the locked development set and the project, editable
#   environment_ready runtime    # less: only what the product itself needs
#
# After it `$PYTHON` is the interpreter, its directory and .tools/bin lead PATH, the working directory is the
# repository's root, and `$ENVIRONMENT_SECONDS` says how long that took. An active virtual environment is used as it is;
# otherwise .venv is made. A stamp in the environment remembers what it was made from, so the next call only compares.

# Packages are installed uncompiled, and Python compiles each module when it is first imported. Where it is told to keep
# nothing of that, every process would do it again: a second more per start of the command or the daemon.
unset PYTHONDONTWRITEBYTECODE

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
LOCKS=$ROOT/requirements

environment_fail() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit 1
}

# True for a Python that the project supports and that can make virtual environments. A version manager's launcher
# exists for versions that are not selected, so it is run and not only looked up.
environment_supports() {
  "$1" -c '
import sys
assert (3, 11) <= sys.version_info[:2] <= (3, 12) and sys.implementation.name == "cpython"
import venv, ensurepip
' >/dev/null 2>&1
}

environment_interpreter() {
  local candidate path
  for candidate in python3.12 python3.11 python3 python; do
    # Every one of that name on PATH: the first may be a launcher without a version behind it.
    while IFS= read -r path; do
      if environment_supports "$path"; then
        printf '%s\n' "$path"
        return
      fi
    done < <(type -aP "$candidate" 2>/dev/null)
  done
  environment_fail "needs CPython 3.11 or 3.12 with the venv module, and found neither on PATH (on Debian: apt-get install python3-venv)"
}

# What an environment was made from: the locks, the project's declaration, where it stands, and the interpreter.
environment_stamp() { # locks...
  "$PYTHON" - "$@" "$ROOT/pyproject.toml" <<'PYTHON'
import hashlib, pathlib, sys

digest = hashlib.sha256(sys.version.encode())
for name in sys.argv[1:]:
    digest.update(name.encode() + b"\0" + pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PYTHON
}

environment_install() { # locks...
  local lock requirements=()
  for lock in "$@"; do
    requirements+=(--requirement "$lock")
  done
  "$PYTHON" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m ensurepip >/dev/null
  local pip=("$PYTHON" -m pip --disable-pip-version-check --quiet)
  # The locks name everything, so nothing is resolved; `pip check` then says whether it really was everything. Python
  # compiles what it imports when it does; compiling all of it here would cost a third of the time.
  "${pip[@]}" install --progress-bar off --no-compile --no-deps --require-hashes "${requirements[@]}"
  "${pip[@]}" install --progress-bar off --no-compile --no-deps --no-build-isolation --editable "$ROOT"
  "${pip[@]}" check
}

environment_ready() { # [runtime]
  local began=$SECONDS environment stamp complete
  local locks=("$LOCKS/development.txt")
  cd "$ROOT"
  if [ -n "${VIRTUAL_ENV:-}" ]; then
    environment=$VIRTUAL_ENV
    environment_supports "$environment/bin/python" ||
      environment_fail "the active virtual environment $environment is not CPython 3.11 or 3.12; deactivate it or activate one that is"
  else
    environment=$ROOT/.venv
    if ! environment_supports "$environment/bin/python"; then
      local interpreter
      interpreter=$(environment_interpreter)
      printf 'Making %s with %s\n' "$environment" "$("$interpreter" --version)"
      "$interpreter" -m venv --clear "$environment"
    fi
  fi
  PYTHON=$environment/bin/python
  export PATH="$environment/bin:$ROOT/.tools/bin:$PATH"

  complete=$(environment_stamp "${locks[@]}")
  stamp=$complete
  if [ "${1:-}" = runtime ]; then
    locks=("$LOCKS/runtime.txt" "$LOCKS/build.txt")
    stamp=$(environment_stamp "${locks[@]}")
  fi
  case "$(cat "$environment/.knhk-stamp" 2>/dev/null)" in
    "$stamp" | "$complete") ;;
    *)
      printf 'Installing the locked packages (%s) into %s\n' "$(cat "${locks[@]}" | grep -c '==')" "$environment"
      environment_install "${locks[@]}"
      printf '%s\n' "$stamp" >"$environment/.knhk-stamp"
      ;;
  esac
  ENVIRONMENT_SECONDS=$((SECONDS - began))
}
