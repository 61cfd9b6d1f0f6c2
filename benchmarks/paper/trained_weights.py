"""Write weights with the statistics of a trained model into a copy of a model folder that has none.

    python -m benchmarks.paper.trained_weights MODEL TRAINED

MODEL is shaped as Llama or OLMoE. Needs torch, safetensors and a GPU with room for the largest layer.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Weights:
    """Writes tensors into shards, and their index."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        import torch

        torch.manual_seed(1)
        self._folder, self._torch = folder, torch
        self._files: dict[str, str] = {}
        self.width, self.feed_forward = config["hidden_size"], config["intermediate_size"]
        head = config.get("head_dim", self.width // config["num_attention_heads"])
        self.keys = config["num_key_value_heads"] * head
        self.experts = config.get("num_experts", 0)

    def normal(self, *shape: int, deviation: float = 0.02) -> Any:
        return (self._torch.randn(*shape, device="cuda") * deviation).to(self._torch.bfloat16)

    def norm(self, width: int) -> Any:
        """Return the scales of a norm: near a half, with eight outlier channels."""
        scales = 0.5 + 0.1 * self._torch.randn(width, device="cuda").abs()
        scales[self._torch.randint(0, width, (8,))] = 3.0
        return scales.to(self._torch.bfloat16)

    def write(self, tensors: Mapping[str, Any]) -> None:
        from safetensors.torch import save_file

        shard = f"model-{len(set(self._files.values())):05d}.safetensors"
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, self._folder / shard)
        self._files |= dict.fromkeys(tensors, shard)

    def write_index(self) -> None:
        index = {"metadata": {}, "weight_map": self._files}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index))

    def feed_forward_of(self, prefix: str) -> dict[str, Any]:
        return {
            f"{prefix}gate_proj.weight": self.normal(self.feed_forward, self.width),
            f"{prefix}up_proj.weight": self.normal(self.feed_forward, self.width),
            f"{prefix}down_proj.weight": self.normal(self.width, self.feed_forward, deviation=0.02 / 8),
        }

    def layer(self, number: int) -> dict[str, Any]:
        prefix, width = f"model.layers.{number}.", self.width
        tensors = {
            f"{prefix}input_layernorm.weight": self.norm(width),
            f"{prefix}post_attention_layernorm.weight": self.norm(width),
            f"{prefix}self_attn.q_proj.weight": self.normal(width, width),
            f"{prefix}self_attn.k_proj.weight": self.normal(self.keys, width),
            f"{prefix}self_attn.v_proj.weight": self.normal(self.keys, width),
            f"{prefix}self_attn.o_proj.weight": self.normal(width, width, deviation=0.02 / 8),
        }
        if not self.experts:
            return tensors | self.feed_forward_of(f"{prefix}mlp.")
        tensors |= {
            f"{prefix}self_attn.q_norm.weight": self.norm(width),
            f"{prefix}self_attn.k_norm.weight": self.norm(self.keys),
            f"{prefix}mlp.gate.weight": self.normal(self.experts, width),
        }
        for expert in range(self.experts):
            tensors |= self.feed_forward_of(f"{prefix}mlp.experts.{expert}.")
        return tensors


def main(model: Path, trained: Path) -> None:
    shutil.copytree(model, trained)
    config = json.loads((model / "config.json").read_text())
    weights = Weights(trained, config)
    weights.write({
        "model.embed_tokens.weight": weights.normal(config["vocab_size"], weights.width),
        "lm_head.weight": weights.normal(config["vocab_size"], weights.width),
        "model.norm.weight": weights.norm(weights.width),
    })  # fmt: skip
    for number in range(config["num_hidden_layers"]):
        weights.write(weights.layer(number))
    weights.write_index()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
