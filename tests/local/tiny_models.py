"""Tiny random models in real Hugging Face folders, built in process: no downloads.

The tokenizer is byte-level, so any text survives a round trip, with the ChatML template and
the Hermes/Qwen form of tools. Weights are random but sharpened, so greedy choices have no near
ties, and seeded, so every run sees the same model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

__all__ = [
    "CALCULATOR",
    "CHATML",
    "script_model",
    "tiny_llama",
    "tiny_mistral",
    "tiny_qwen2",
    "tiny_t5",
    "tiny_tokenizer",
]

CHATML = """\
{%- if tools %}<|im_start|>system
{%- for message in messages if message.role == 'system' %}
{{ message.content }}
{%- endfor %}
# Tools
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools>
For each call answer <tool_call>
{"name": <name>, "arguments": <arguments>}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'system' %}
{%- if not tools %}<|im_start|>system
{{ message.content }}<|im_end|>
{% endif %}
{%- elif message.role == 'tool' %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if open_think %}<think>
{% endif %}{% endif %}"""

CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calc",
        "description": "Evaluate an expression.",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "string"}},
            "required": ["x"],
        },
    },
}

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TABLES = ("model.embed_tokens.weight", "shared.weight")
_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


def tiny_tokenizer(extra: tuple[str, ...] = (), chat_template: str | None = CHATML) -> Any:
    """Return a byte-level tokenizer: 256 bytes, 3 special tokens, 4 tags and `extra` words.

    Args:
        extra: Words that are one token each.
        chat_template: None for a model that is no chat model.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in _SPECIAL])
    backend.add_tokens([AddedToken(text, special=False) for text in (*_TAGS, *extra)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=chat_template,
    )


def tiny_llama(
    folder: Path,
    *,
    vocab: int | None = None,
    layers: int = 2,
    width: int = 32,
    seed: int = 0,
    window: int = 512,
    chat: bool = True,
    extra: tuple[str, ...] = (),
    sharp: bool = True,
) -> str:
    """Save a random Llama model with its tokenizer and return the folder.

    Args:
        folder: Where to save; made if missing.
        vocab: Width of the logits; the tokenizer's size when not given (more = padded).
        layers: Number of layers.
        width: Hidden size; a multiple of 16.
        seed: Of the weights.
        window: Context window in tokens.
        chat: Whether the tokenizer has a chat template.
        extra: Words that are one token each.
        sharp: Whether the laws are far from uniform (entropy about half the greatest).
    """
    tokenizer = tiny_tokenizer(extra, CHATML if chat else None)
    config = LlamaConfig(
        vocab_size=vocab or len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 8,
        num_key_value_heads=width // 16,
        max_position_embeddings=window,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    scale = (25.0, 12.0) if sharp else (4.0, 4.0)
    return _save(LlamaForCausalLM, config, tokenizer, folder, seed, scale)


def tiny_qwen2(folder: Path, *, layers: int = 2, seed: int = 0, window: int = 512) -> str:
    """Save a random Qwen2 model with its tokenizer and return the folder."""
    tokenizer = tiny_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=window,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return _save(Qwen2ForCausalLM, config, tokenizer, folder, seed, (25.0, 12.0))


def tiny_mistral(folder: Path, *, sliding: int = 16, seed: int = 0) -> str:
    """Save a random Mistral model whose layers see only the last `sliding` tokens."""
    tokenizer = tiny_tokenizer()
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        sliding_window=sliding,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return _save(MistralForCausalLM, config, tokenizer, folder, seed, (25.0, 12.0))


def tiny_t5(
    folder: Path, *, vocab: int | None = None, layers: int = 2, seed: int = 0, chat: bool = False
) -> str:
    """Save a random T5 model with its tokenizer and return the folder."""
    tokenizer = tiny_tokenizer((), CHATML if chat else None)
    config = T5Config(
        vocab_size=vocab or len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=4,
        decoder_start_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _save(T5ForConditionalGeneration, config, tokenizer, folder, seed, (2.5, 8.0))


def script_model(
    folder: Path, text: str, *, extra: tuple[str, ...] = (), open_think: bool = False
) -> str:
    """Train a tiny chat model, in a second or two, to answer "Hi" with `text`.

    Args:
        folder: Where to save.
        text: What it writes, followed by the end-of-turn token; tags are single tokens.
        extra: Words that are one token each.
        open_think: Whether its template opens a reasoning block.
    """
    path = tiny_llama(folder, layers=2, width=64, seed=1, window=1024, extra=extra, sharp=False)
    tokenizer = tiny_tokenizer(extra)
    model = LlamaForCausalLM.from_pretrained(path)
    answer = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    heads = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}],
            tools=tools,
            add_generation_prompt=True,
            open_think=open_think,
        )["input_ids"]
        for tools in (None, [CALCULATOR])
    ]
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    worst = [1.0, 1.0]
    for step in range(400):
        head = heads[step % len(heads)]
        ids = torch.tensor([head + answer])
        labels = torch.tensor([[-100] * len(head) + answer])
        loss = model(ids, labels=labels).loss
        worst[step % 2] = loss.item()
        if max(worst) < 3e-3:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(path)
    return path


def _save(
    kind: Any, config: Any, tokenizer: Any, folder: Path, seed: int, scale: tuple[float, float]
) -> str:
    """Save a model whose tables and other matrices are scaled up, so that laws are not flat."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = kind(config).eval()
    torch.random.set_rng_state(state)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.mul_(scale[0] if name in _TABLES else scale[1])
    model.generation_config = GenerationConfig(
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=getattr(config, "decoder_start_token_id", None),
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
