"""Loading: what is chosen automatically, what is refused, and what stays when loading fails."""

from __future__ import annotations

import copy
import gc
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, dynamic_module_utils

from cascadellm.errors import ConfigurationError, ModelError, OutOfMemoryError
from cascadellm.local import LocalModel, memory_estimate
from cascadellm.tier import LocalLike
from tests.local.tiny_models import tiny_llama, tiny_t5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that tests may read but not change."""
    return Path(tiny_llama(tmp_path_factory.mktemp("load") / "tiny-llama"))


def test_a_local_model_is_what_the_engine_calls(llama: LocalModel) -> None:
    """It satisfies the protocol and carries a name, a window and a device."""
    assert isinstance(llama, LocalLike)
    assert 512 == llama.context_window
    assert "cpu" == llama.device.type
    assert llama.module.dtype is torch.float32
    assert not llama.is_encoder_decoder
    assert not llama.module.training


def test_the_name_is_the_last_part_of_the_path(folder: Path) -> None:
    """A folder, with or without prefix and slash, gives its own name; a given name wins."""
    for path in (str(folder), f"hf:{folder}", f"{folder}/"):
        with LocalModel(path) as model:
            assert "tiny-llama" == model.model_name
    with LocalModel(str(folder), name="small") as model:
        assert "small" == model.model_name
        assert "LocalModel(" in repr(model)
        assert "closed" not in repr(model)
    assert "closed" in repr(model)


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("/no/such/folder", "there is no folder '/no/such/folder'.*hub name"),
        ("./missing", "there is no folder"),
        ("nobody/no-such-model", "cannot load nobody/no-such-model"),
    ],
)
def test_an_unknown_path_says_what_was_expected(path: str, match: str) -> None:
    """A folder that is not there and a hub name that cannot be reached are named."""
    with pytest.raises(ModelError, match=match):
        LocalModel(path)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"path": ""}, "expects a folder or a hub name"),
        ({"device": "gpu"}, "device must be 'auto' or a torch device"),
        ({"dtype": "int8"}, "dtype must be"),
        ({"dtype": "tiny"}, "dtype must be"),
        ({"batch_size": 0}, "batch_size must be a whole number >= 1"),
        ({"context_window": -1}, "context_window must be"),
        ({"temperature": -1}, "temperature must be"),
    ],
)
def test_wrong_arguments_are_refused_before_loading(
    folder: Path, arguments: dict[str, Any], match: str
) -> None:
    """The error names the argument and what it may be."""
    with pytest.raises(ConfigurationError, match=match):
        LocalModel(**{"path": str(folder), **arguments})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_missing_is_refused(folder: Path) -> None:
    """Asking for a GPU where there is none says so."""
    with pytest.raises(ConfigurationError, match="'cuda' is not available here"):
        LocalModel(str(folder), device="cuda")


def test_dtype_is_passed_on(folder: Path) -> None:
    """A precision asked for by name or value is the model's; scores stay float32."""
    for dtype in ("bfloat16", torch.bfloat16):
        with LocalModel(str(folder), dtype=dtype, max_new_tokens=3) as model:  # type: ignore[arg-type]
            assert model.module.dtype is torch.bfloat16
            assert 3 == len(model.generate("hi").tokens or ())


def test_weights_that_run_code_are_refused(folder: Path, tmp_path: Path) -> None:
    """Pickled weights are not read unless the caller asks for them."""
    for file in folder.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"has no safetensors weights.*safetensors_only=False"):
        LocalModel(str(tmp_path))
    with LocalModel(str(tmp_path), safetensors_only=False, max_new_tokens=2) as model:
        assert model.generate("hi").usage is not None


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
open({ran!r}, "w").close()
class Config(LlamaConfig):
    model_type = "own"
class Model(LlamaForCausalLM):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""
OWN_PARTS = {
    "config.json": {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    },
    "tokenizer_config.json": {
        "tokenizer_class": "Tokenizer",
        "auto_map": {"AutoTokenizer": [None, "own.Tokenizer"]},
    },
}


@pytest.mark.parametrize("file", sorted(OWN_PARTS))
def test_code_of_a_model_folder_is_not_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """A model or tokenizer with code of its own is refused, unless the caller trusts it."""
    path, ran = tmp_path / "own", tmp_path / "ran"
    shutil.copytree(folder, path)
    (path / "own.py").write_text(OWN_CODE.format(ran=str(ran)))
    stated = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps(stated | OWN_PARTS[file]))
    with pytest.raises(ModelError, match=r"Python code of its own.*trust_remote_code=True"):
        LocalModel(str(path))
    assert not ran.exists()
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    with LocalModel(str(path), trust_remote_code=True, max_new_tokens=2) as model:
        assert model.generate("hi").usage is not None
    assert ran.exists()


def test_a_broken_folder_is_explained(folder: Path, tmp_path: Path) -> None:
    """A folder without weights, and a configuration of no known family, give our error."""
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ModelError, match="cannot load"):
        LocalModel(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such"}))
    with pytest.raises(ModelError, match="no-such"):
        LocalModel(str(tmp_path))
    with pytest.raises(ModelError, match="no-such"):
        memory_estimate(str(tmp_path))


def _alive() -> int:
    gc.collect()
    return sum(type(thing) is LlamaForCausalLM for thing in gc.get_objects())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes"),
    ],
)
def test_nothing_stays_when_memory_runs_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Half-loaded weights are dropped and the error says how to find out what fits."""
    before = _alive()

    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(LlamaForCausalLM, "to", full)
    with pytest.raises(OutOfMemoryError, match="tiny-llama to cpu ran out of memory") as caught:
        LocalModel(str(folder))
    # the traceback is still held here, as a caller's log would hold it
    assert caught.value.__traceback__ is not None
    assert before == _alive()


def test_memory_that_runs_out_while_answering_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is dropped, the model stays usable."""
    with LocalModel(str(folder), max_new_tokens=4) as model:
        expected = model.generate("hi").text
        with monkeypatch.context() as patch:
            patch.setattr(
                LlamaForCausalLM, "forward", _raise(torch.OutOfMemoryError("CUDA out of memory"))
            )
            with pytest.raises(OutOfMemoryError, match="tiny-llama ran out of memory on cpu"):
                model.generate("hi")
        with monkeypatch.context() as patch:
            patch.setattr(LlamaForCausalLM, "forward", _raise(RuntimeError("another fault")))
            with pytest.raises(RuntimeError, match="another fault"):
                model.generate("hi")
        assert expected == model.generate("hi").text


def _raise(error: Exception) -> Any:
    def forward(self: object, input_ids: object = None, **_: object) -> None:
        raise error

    return forward


def test_close_frees_the_model_and_later_calls_say_so(folder: Path) -> None:
    """Closing drops the weights; calls and streams under way end with an error."""
    before = _alive()
    model = LocalModel(str(folder), max_new_tokens=20)
    assert before + 1 == _alive()
    stream = model.stream("hi")
    next(stream)
    model.close()
    model.close()
    with pytest.raises(ModelError, match="tiny-llama is closed"):
        list(stream)
    del stream
    assert before == _alive()
    for call in (model.generate, model.encode, lambda _: model.module):
        with pytest.raises(ModelError, match="tiny-llama is closed"):
            call("hi")


def test_copies_share_the_loaded_weights(llama: LocalModel) -> None:
    """Chains are copied deeply; the model is not loaded twice for it."""
    assert llama is copy.deepcopy(llama)
    assert copy.copy(llama).module is llama.module


def test_the_checkpoints_advice_is_the_default_and_can_be_overruled(
    folder: Path, tmp_path: Path
) -> None:
    """Sampling settings come from the caller, else from generation_config.json, else off."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    advice = {"top_k": 7, "repetition_penalty": 1.2, "temperature": 0.6, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(advice))
    with LocalModel(str(tmp_path), repetition_penalty=1.0) as model:
        settings = model.settings()
        assert (7, 1.0, None, 0.0) == (
            settings.top_k,
            settings.repetition_penalty,
            settings.top_p,
            settings.temperature,
        )
        assert 0 == model.settings(top_k=0).top_k


def test_end_tokens_are_those_of_checkpoint_tokenizer_and_template(
    folder: Path, tmp_path: Path
) -> None:
    """An end-of-turn token that only the template knows ends an answer too."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with LocalModel(str(folder)) as model:
        turn, end = model.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["eos_token"] = "<|endoftext|>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with LocalModel(str(tmp_path)) as model:
        assert {turn, end} == model.eos_ids


@pytest.fixture(params=["llama", "t5"])
def any_folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A causal and an encoder-decoder model in turn."""
    make = {"llama": tiny_llama, "t5": tiny_t5}[request.param]
    return make(tmp_path / request.param)


def test_memory_estimate_counts_the_weights_that_are_loaded(any_folder: str) -> None:
    """Parameters and bytes are those of the loaded model; the cache grows with the tokens."""
    estimate = memory_estimate(any_folder, tokens=100)
    with LocalModel(any_folder) as model:
        sizes = [weight.numel() for weight in model.module.parameters()]
    assert sum(sizes) == estimate.parameters
    assert 4 * sum(sizes) == estimate.weights_bytes
    half = memory_estimate(any_folder, tokens=200, batch_size=3, dtype="bfloat16")
    assert 2 * sum(sizes) == half.weights_bytes
    assert 3 * estimate.cache_bytes == half.cache_bytes
    assert estimate.total_bytes == estimate.weights_bytes + estimate.cache_bytes
    assert "GiB" in str(estimate)


def test_memory_estimate_equals_the_cache_that_is_built(llama: LocalModel) -> None:
    """The estimate of the cache is the size of the cache after as many tokens."""
    ids = torch.zeros((1, 50), dtype=torch.long)
    cache = llama.module(ids, use_cache=True).past_key_values
    size = sum(4 * (layer.keys.numel() + layer.values.numel()) for layer in cache.layers)
    assert size == memory_estimate(llama.path, tokens=50).cache_bytes


@pytest.mark.parametrize(
    ("switch", "share"), [("load_in_4bit", 0.125), ("load_in_8bit", 0.25), ("other", 1.0)]
)
def test_memory_estimate_knows_packed_weights(folder: Path, switch: str, share: float) -> None:
    """Four- and eight-bit weights are counted as such; what is unknown counts in full."""

    class Packed:
        pass

    packed = Packed()
    setattr(packed, switch, True)
    full = memory_estimate(str(folder)).weights_bytes
    estimate = memory_estimate(str(folder), quantization_config=packed)
    assert round(share * full) == estimate.weights_bytes
