"""Estimates a model's weights, activations and KV cache from its files.

The sizes follow from the decoder's shape. Each layer has the attention's four matrices, the gated
MLP's three and two norms. There is one embedding, or two where it is not tied. The KV cache takes 2
x layers x KV heads x head size values per token. The activations are those of the largest step: a
few hidden states and both halves of the MLP per token, and float32 logits per sequence, twice (the
sampler sorts a copy).
"""

import json
from pathlib import Path
from typing import Any

import attrs

BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2, "fp8": 1, "float8_e4m3fn": 1}
HIDDEN_STATES = 4
LOGIT_COPIES = 2


@attrs.frozen(kw_only=True)
class Shape:
    """The shape of a decoder-only model.

    Attributes:
        value_bytes: Bytes of one weight, activation or cached value.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    tied: bool
    value_bytes: int

    @property
    def parameters(self) -> int:
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        mlp = 3 * self.hidden * self.intermediate
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * (attention + mlp + 2 * self.hidden) + self.hidden

    @property
    def weights(self) -> int:
        """Size of the weights in bytes."""
        return self.parameters * self.value_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_size * self.value_bytes

    def activations(self, batched_tokens: int, sequences: int) -> int:
        """Return the activations of the largest step in bytes."""
        states = batched_tokens * (HIDDEN_STATES * self.hidden + 2 * self.intermediate) * self.value_bytes
        return states + LOGIT_COPIES * 4 * sequences * self.vocabulary


def read_shape(folder: Path, dtype: str | None = None) -> Shape | None:
    """Read a model's config.json; None if it is missing or describes another kind of model."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        name = dtype if dtype not in (None, "auto") else config.get("dtype") or config.get("torch_dtype") or "bfloat16"
        return Shape(
            hidden=hidden,
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or hidden // heads,
            intermediate=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", True)),
            value_bytes=BYTES.get(str(name).removeprefix("torch."), 2),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
