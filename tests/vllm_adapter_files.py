"""LoRA adapters for the bundled model, in PEFT's form."""

import json

import numpy as np

# SmolLM2-135M: its layers, and the sizes of what goes into and comes out of two of its projections.
LAYERS, HIDDEN = 30, 576
SIZES = {"q_proj": 576, "v_proj": 192}


def write_adapter(folder, rank, strength):
    """In PEFT's form; with a strength of 0 it adds nothing."""
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
