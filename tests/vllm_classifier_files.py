"""Writes a small classifier with random weights, and the tokenizer of the bundled embedding model."""

import shutil
from pathlib import Path

from llmserve.models import resolve


def write_classifier(folder, labels):
    """Fill `folder` with a model of two layers that has a class for each label; return it."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    source = Path(resolve("bundled-embedding"))
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(source / name, folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=128,
        # The scores of random weights would differ too little with the default of 0.02.
        initializer_range=0.5,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder
