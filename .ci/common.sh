# Shared by run and slow: a folder of their own, the README's commands, a virtual environment.
exec </dev/null
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR=$work PIP_PROGRESS_BAR=off

step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

readme() { # of the README's bash blocks, the first command that starts like $1, up to && or a comment
  awk '/^```/ { inside = !inside && /bash/; next } inside' README.md | grep -oEm1 "$1[^&#]*" ||
    { echo "README.md has no command '$1'" >&2; return 1; }
}

fresh_environment() {
  python -m venv "$work/venv"
  . "$work/venv/bin/activate"
}

lesser_paths() { # the instruction sets below this processor's own, as ATEN_CPU_CAPABILITY names them
  local own
  own=$(python -c 'import torch; print(torch.backends.cpu.get_cpu_capability().lower())')
  for capability in default avx2; do
    [[ $capability == "$own" ]] || echo "$capability"
  done
}
