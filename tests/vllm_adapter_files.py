"""LoRA adapters for the bundled model, in PEFT's format."""

import json

import numpy as np

# SmolLM2-135M: its number of layers, and the input and output sizes of two of its projections.
LAYERS, HIDDEN = 30, 576
SIZES = {"q_proj": 576, "v_proj": 192}


def write_adapter(folder, rank, strength):
    """Write an adapter in PEFT's format. With a strength of 0 it changes nothing."""
    from safetensors.numpy import save_file

    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": list(SIZES), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(1)
    weights = {}
    for layer in range(LAYERS):
        for name, size in SIZES.items():
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{key}.lora_A.weight"] = rng.normal(size=(rank, HIDDEN)).astype(np.float32) / 24
            weights[f"{key}.lora_B.weight"] = (strength * rng.normal(size=(size, rank))).astype(np.float32)
    save_file(weights, folder / "adapter_model.safetensors")
    return str(folder)
