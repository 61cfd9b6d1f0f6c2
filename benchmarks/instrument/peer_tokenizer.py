"""Write a small byte-level BPE tokenizer with a chat template, in Hugging Face's format: peer_tokenizer.py FOLDER

Some peers require a tokenizer. The script needs transformers and tokenizers, which those peers install. It trains on
Python's own standard library, so nothing is downloaded.
"""

import json
import sys
import sysconfig
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}<s>assistant\n"
CONTEXT = 131_072


def main(out: Path) -> None:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train(sorted(map(str, Path(sysconfig.get_paths()["stdlib"]).glob("*.py")))[:120], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE, model_max_length=CONTEXT
    ).save_pretrained(out)
    # transformers 5 writes a tokenizer class and a template location that older versions do not know.
    path = out / "tokenizer_config.json"
    written = json.loads(path.read_text()) | {"chat_template": TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"}
    written.pop("backend", None)
    path.write_text(json.dumps(written, indent=1))
    shape = {"vocab_size": 8000, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": CONTEXT}
    (out / "config.json").write_text(json.dumps(shape | model))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
