"""Writes a small Idefics3 model with random weights, its tokenizer and its image processor.

Most vision models of vLLM need torchvision, which the lock for CPUs omits; Idefics3 does not.
"""

import json

# The side of an image in pixels, and of a patch; a token of the text stands for 2 x 2 patches.
SIDE, PATCH = 56, 7
PLACES = (SIDE // PATCH // 2) ** 2
# Beside them, an image has three tokens around it.
IMAGE_TOKENS = PLACES + 3
SPECIAL = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
TEMPLATE = """{%- for message in messages -%}
<{{ message['role'] }}>
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<image>{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<assistant>{%- endif -%}"""


def write_vision_model(folder):
    """Fill `folder` with a model that reads bytes and images; return it."""
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, LlamaConfig

    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    layers = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    # With the weights that random models have by default, all answers would be alike.
    text = LlamaConfig(**layers, num_key_value_heads=2, vocab_size=len(tokenizer), max_position_embeddings=1024, initializer_range=0.5)
    config = Idefics3Config(
        vision_config={**layers, "image_size": SIDE, "patch_size": PATCH, "initializer_range": 0.2},
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    name = {"processor_class": "Idefics3Processor"}
    edges = {"size": {"longest_edge": 4 * SIDE}, "max_image_size": {"longest_edge": SIDE}, "do_image_splitting": False}
    files = {
        "preprocessor_config.json": {"image_processor_type": "Idefics3ImageProcessor", **edges, **name},
        "processor_config.json": {"image_seq_len": PLACES, **name},
    }
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    return folder


def _tokenizer():
    """Return a tokenizer with a token for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    found = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=found, bos_token="<s>", eos_token="</s>", pad_token="<pad>", additional_special_tokens=SPECIAL
    )
    fast.chat_template = TEMPLATE
    return fast
