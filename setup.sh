#!/usr/bin/env bash
# Make the virtual environment .venv with everything robo-razor needs. Called by `make setup`.
# Needs Python 3.12 only; uv is used where there is one and installed into .venv where there is not
# (plain pip cannot install this set: robosuite and lerobot ask for two packages that both own cv2).
set -euo pipefail
cd "$(dirname "$0")"

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.12 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  return 1
}

python=$(find_python) || {
  echo "robo-razor needs Python 3.12: put python3.12 on PATH, or run make PYTHON=/path/to/python3.12" >&2
  exit 1
}

"$python" - <<'PY'
import ctypes
import os
import sys


def loads(library):
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


wanted = {"libegl1": "libEGL.so.1", "libgl1": "libGL.so.1"}
if os.environ.get("MUJOCO_GL") == "osmesa":
    wanted = {"libosmesa6": "libOSMesa.so.8"}
missing = [package for package, library in wanted.items() if not loads(library)]
if missing and sys.platform.startswith("linux"):
    hint = " (or libosmesa6 and MUJOCO_GL=osmesa)" if "libegl1" in missing else ""
    sys.exit(f"OpenGL is missing: apt-get install {' '.join(missing)}{hint}, then make again.")
PY

export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}"
if uv --version >/dev/null 2>&1; then
  uv=uv
  [ -x .venv/bin/python ] || uv venv --quiet --allow-existing --python "$python" .venv
else
  uv=.venv/bin/uv
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  [ -x "$uv" ] || .venv/bin/python -m pip install --quiet uv
fi
# Compiled once here; else every process would do it where PYTHONDONTWRITEBYTECODE is set.
"$uv" pip install --python .venv/bin/python --constraint constraints.txt --compile-bytecode --editable '.[dev]'
