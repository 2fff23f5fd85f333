"""Loading a model folder or hub name: safetensors, device, precision, and errors that help."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from cascadellm.errors import CascadeError, ConfigurationError, ModelError, OutOfMemoryError
from cascadellm.local.quick import QuickForward

__all__ = [
    "LoadOptions",
    "Loaded",
    "choose_device",
    "choose_dtype",
    "free",
    "load",
    "out_of_memory",
    "read_config",
]

_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<turn|>")
_UNLIMITED = 1_000_000
_SLOW_ON_CPU = 500_000_000


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What `LocalModel` passes on to transformers."""

    path: str
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    quantization_config: Any = None
    device_map: Any = None
    trust_remote_code: bool = False
    safetensors_only: bool = True
    context_window: int | None = None

    @property
    def hub(self) -> dict[str, Any]:
        """Arguments that choose which files are read."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory, ready to run.

    Attributes:
        module: The transformers model, in evaluation mode.
        tokenizer: Its tokenizer.
        device: Device of its first parameters.
        eos_ids: Tokens that end an answer.
        is_encoder_decoder: Whether an encoder reads the prompt.
        context_window: Most tokens of prompt plus answer.
        defaults: Sampling settings that the checkpoint recommends.
        quick: A shorter way through the same layers, where it gives the same numbers.
    """

    module: Any
    tokenizer: Any
    device: torch.device
    eos_ids: frozenset[int]
    is_encoder_decoder: bool
    context_window: int
    defaults: Mapping[str, Any] = field(default_factory=dict)
    quick: QuickForward | None = None


def load(options: LoadOptions) -> Loaded:
    """Load a model with its tokenizer.

    Raises:
        ConfigurationError: Device or dtype is unknown.
        ModelError: The path is unknown, or the files cannot be read.
        OutOfMemoryError: The device is too small; nothing stays on it.
    """
    device = choose_device(options)
    dtype = choose_dtype(options, device)
    config = read_config(options)
    is_encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
    family = AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM
    with _explained(options, f"to {device}"):
        module, tokenizer = _read(options, family, device, dtype)
    return Loaded(
        module=module,
        tokenizer=tokenizer,
        device=next(module.parameters()).device,
        eos_ids=_eos_ids(module, tokenizer),
        is_encoder_decoder=is_encoder_decoder,
        context_window=options.context_window or _context_window(config, tokenizer),
        defaults=_defaults(module),
        quick=None if is_encoder_decoder else _quick(module, device),
    )


def read_config(options: LoadOptions) -> Any:
    """Read a model's configuration.

    Raises:
        ModelError: There is no such model.
    """
    path = options.path
    if _names_folder(path) and not Path(path).is_dir():
        raise ModelError(
            f"there is no folder {path!r}; give an existing folder with config.json and "
            "*.safetensors, or a hub name such as 'Qwen/Qwen3-0.6B'"
        )
    with _explained(options, "its configuration"):
        return AutoConfig.from_pretrained(path, **options.hub)


def _read(options: LoadOptions, family: Any, device: torch.device, dtype: Any) -> tuple[Any, Any]:
    """Read tokenizer and weights; a frame of its own, so that a failure can drop its locals."""
    tokenizer = AutoTokenizer.from_pretrained(options.path, **options.hub)
    placed = options.device_map is not None or options.quantization_config is not None
    module = family.from_pretrained(
        options.path,
        dtype=dtype,
        use_safetensors=True if options.safetensors_only else None,
        quantization_config=options.quantization_config,
        device_map=options.device_map or (device if placed else None),
        **options.hub,
    )
    if not placed:
        module = module.to(device)
    return module.eval(), tokenizer


def _quick(module: Any, device: torch.device) -> QuickForward | None:
    """Return the short way, unless the check costs more than it can ever save."""
    if device.type == "cpu" and module.num_parameters() > _SLOW_ON_CPU:
        return None
    return QuickForward.of(module, block=8)


def free(device: torch.device | str) -> None:
    """Return memory that nothing holds any more to the device."""
    gc.collect()
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.empty_cache()
    elif kind == "mps":
        torch.mps.empty_cache()


def out_of_memory(error: Exception) -> bool:
    """Whether torch says that a device ran out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "not enough memory" in text or "can't allocate memory" in text
    )


@contextmanager
def _explained(options: LoadOptions, what: str) -> Iterator[None]:
    """Turn errors of torch and transformers into ours, after freeing what was half loaded."""
    try:
        yield
    except CascadeError:
        raise
    except Exception as error:
        # frames of the failed call hold the half-loaded weights
        traceback.clear_frames(error.__traceback__)
        short = " ".join(str(error).split())[:400]
        if out_of_memory(error):
            free("cuda" if torch.cuda.is_available() else "cpu")
            raise OutOfMemoryError(
                f"loading {options.path} {what} ran out of memory ({short}); compare "
                "cascadellm.local.memory_estimate(path) with what is free, then choose a smaller "
                "model, dtype='bfloat16', a quantization_config or another device"
            ) from error
        raise ModelError(_why(options, error, short)) from error


def _why(options: LoadOptions, error: Exception, short: str) -> str:
    """Say what was expected; the two refusals of `LoadOptions` by name, with the way out."""
    if not options.trust_remote_code and "trust_remote_code" in str(error):
        return (
            f"{options.path} brings Python code of its own, which loading would run; it was not "
            "run. Read that code and pass trust_remote_code=True, or take a model that "
            "transformers implements itself"
        )
    if options.safetensors_only and "model.safetensors" in str(error):
        return (
            f"{options.path} has no safetensors weights; other formats (pytorch_model.bin) can "
            "run code when they are read, so none was. Convert them (load them where you trust "
            "them, then save_pretrained), or pass safetensors_only=False"
        )
    return (
        f"cannot load {options.path} ({type(error).__name__}: {short}); expected a folder "
        "or hub name of a causal or encoder-decoder language model with safetensors weights "
        "and a tokenizer, and a network connection if it is not in the local cache"
    )


def _names_folder(path: str) -> bool:
    """Whether the string can only mean a folder: hub names are `name` or `owner/name`."""
    return path.startswith(("/", "./", "../", "~")) or "\\" in path or path.count("/") > 1


def choose_device(options: LoadOptions) -> torch.device:
    """Return the device asked for; `auto` is the first of cuda, mps, cpu.

    Raises:
        ConfigurationError: It is unknown or not available.
    """
    if options.device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(options.device)
    except RuntimeError as error:
        raise ConfigurationError(
            f"device must be 'auto' or a torch device such as 'cpu', 'cuda', 'cuda:1', 'mps'; "
            f"got {options.device!r}"
        ) from error
    missing = (device.type == "cuda" and not torch.cuda.is_available()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ConfigurationError(
            f"device {options.device!r} is not available here; use device='auto' or 'cpu'"
        )
    return device


def choose_dtype(options: LoadOptions, device: torch.device) -> Any:
    """Return the torch dtype asked for; `"auto"` stands for the checkpoint's own.

    Raises:
        ConfigurationError: It is no floating-point dtype.
    """
    if options.dtype == "auto":
        # half precision is slow on most CPUs; a GPU takes the checkpoint's own
        return torch.float32 if device.type == "cpu" else "auto"
    dtype = getattr(torch, str(options.dtype).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigurationError(
            "dtype must be 'auto', 'float32', 'bfloat16', 'float16' or a floating torch.dtype; "
            f"got {options.dtype!r}"
        )
    return dtype


def _eos_ids(module: Any, tokenizer: Any) -> frozenset[int]:
    """Collect every token that ends an answer: the checkpoint's, the tokenizer's, end of turn."""
    found: set[int] = set()
    for value in (
        getattr(module.generation_config, "eos_token_id", None),
        getattr(module.config, "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        found.update([value] if isinstance(value, int) else value or [])
    template = str(tokenizer.chat_template or "")
    known = tokenizer.get_added_vocab()
    found.update(known[turn] for turn in _END_OF_TURN if turn in template and turn in known)
    return frozenset(found)


def _context_window(config: Any, tokenizer: Any) -> int:
    """Return the window that the configuration states, else the tokenizer's."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return int(min(tokenizer.model_max_length, _UNLIMITED))


def _defaults(module: Any) -> dict[str, Any]:
    """Return the sampling settings that the checkpoint itself states."""
    stated = module.generation_config.to_diff_dict() if module.generation_config else {}
    names = ("top_k", "top_p", "repetition_penalty")
    return {name: stated[name] for name in names if stated.get(name)}
