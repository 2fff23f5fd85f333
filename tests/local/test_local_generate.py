"""Answers: the tokens of `model.generate`, with scores, streamed or in batches alike."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from cascadellm.answer import ToolCall
from cascadellm.local import LocalModel, decoding, forward
from cascadellm.local.decoding import Decoding
from tests.local.tiny_models import CALCULATOR, script_model

QUESTIONS = ["Hi", "What is the capital of the moon?", "x", "Tell me more, please, than that."]


@pytest.fixture(params=["llama", "qwen2", "mistral", "t5"])
def model(request: pytest.FixtureRequest) -> LocalModel:
    """Each family in turn."""
    found: LocalModel = request.getfixturevalue(request.param)
    return found


def _generated(model: LocalModel, question: str, **options: Any) -> list[int]:
    """Return the new tokens of transformers' own greedy `generate`."""
    ids = model.encode(question)
    out = model.module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        eos_token_id=sorted(model.eos_ids),
        max_new_tokens=model.settings().max_new_tokens,
        **options,
    )
    start = 1 if model.is_encoder_decoder else ids.shape[1]
    tokens: list[int] = out[0, start:].tolist()
    return tokens


def _token_ids(model: LocalModel, question: str, **overrides: Any) -> list[int]:
    job = model._runner._job(question, None, model.settings(**overrides))
    decoding = Decoding(model._runner.loaded)
    decoding.advance([job])
    while not job.done:
        decoding.advance()
    return job.assembler.token_ids


@pytest.mark.parametrize("question", QUESTIONS)
def test_greedy_tokens_equal_those_of_generate(model: LocalModel, question: str) -> None:
    """Token for token, for decoder-only and encoder-decoder models."""
    assert _generated(model, question) == _token_ids(model, question)


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_repetition_penalty_equals_that_of_generate(model: LocalModel, penalty: float) -> None:
    """The penalty sees the prompt and everything written, as in `generate`."""
    expected = _generated(model, "Hi", repetition_penalty=penalty)
    assert expected == _token_ids(model, "Hi", repetition_penalty=penalty)


def test_a_penalty_that_forgets_the_prompt_is_noticed(
    llama: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mutant that shows the processors only the newest token does not pass for `generate`."""
    expected = _generated(llama, "Hi", repetition_penalty=1.3)
    newest = property(lambda self: self._all[:, self._length - 1 : self._length])
    monkeypatch.setattr(decoding._Seen, "ids", newest)
    assert expected != _token_ids(llama, "Hi", repetition_penalty=1.3)


def test_a_wrong_position_is_noticed(llama: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant that places new tokens one too far does not pass for `generate`."""
    right = _token_ids(llama, "Hi")
    start = forward.CausalSteps.start

    def shifted(self: Any, prompts: list[torch.Tensor]) -> torch.Tensor:
        rows = start(self, prompts)
        self._length += 1
        return rows

    monkeypatch.setattr(forward.CausalSteps, "start", shifted)
    assert right == _generated(llama, "Hi")
    assert right != _token_ids(llama, "Hi")


def test_the_short_way_gives_the_tokens_of_the_long_one(llama: LocalModel) -> None:
    """Where the model's layers are run directly, tokens and scores stay bit for bit the same."""
    loaded = llama._runner.loaded
    assert loaded.quick is not None
    answers = []
    for way in (loaded, dataclasses.replace(loaded, quick=None)):
        job = llama._runner._job("Hi", None, llama.settings())
        batch = Decoding(way)
        batch.advance([job])
        while not job.done:
            batch.advance()
        answers.append(job.finish())
    assert answers[0] == answers[1]


def test_scores_are_those_of_the_models_own_law(model: LocalModel) -> None:
    """Log-probabilities equal a fresh forward pass over the whole answer, at temperature 1."""
    tokens = _token_ids(model, "Hi")
    answer = model.generate("Hi")
    ids = model.encode("Hi")
    written = torch.tensor([tokens])
    with torch.inference_mode():
        if model.is_encoder_decoder:
            first = torch.tensor([[model.module.config.decoder_start_token_id]])
            logits = model.module(input_ids=ids, decoder_input_ids=torch.cat([first, written], 1))
            rows = logits.logits[0, :-1]
        else:
            rows = model.module(torch.cat([ids, written], 1)).logits[0, ids.shape[1] - 1 : -1]
    law = torch.log_softmax(rows.double(), -1)
    assert answer.tokens is not None
    assert len(tokens) == len(answer.tokens)
    for row, token, score in zip(law, tokens, answer.tokens, strict=True):
        assert score.logprob == pytest.approx(float(row[token]), abs=2e-4)
        assert score.entropy == pytest.approx(float(-(row.exp() * row).sum()), abs=2e-3)
        assert 5 == len(score.top)
        assert score.top[0][1] == pytest.approx(float(row.max()), abs=2e-4)


def test_scores_do_not_depend_on_sampling_settings(llama: LocalModel) -> None:
    """A sampled answer is scored under the unprocessed law, so thresholds keep their meaning."""
    plain = llama.generate("Hi", max_new_tokens=1)
    sharp = llama.generate("Hi", max_new_tokens=1, temperature=0.01, seed=1, top_k=3)
    assert plain.tokens is not None
    assert sharp.tokens is not None
    assert plain.tokens == sharp.tokens


def test_scores_can_be_switched_off(model: LocalModel) -> None:
    """Without scores the answer is the same, and its tokens are None."""
    scored, bare = model.generate("Hi"), model.generate("Hi", logprobs=False)
    assert bare.tokens is None
    assert (scored.text, scored.usage) == (bare.text, bare.usage)


def test_streamed_pieces_join_to_the_answer(model: LocalModel) -> None:
    """The last piece carries the answer that `generate` gives."""
    for question in QUESTIONS:
        pieces = list(model.stream(question))
        answer = model.generate(question)
        assert answer == pieces[-1].answer
        assert answer.text == "".join(piece.text for piece in pieces)
        assert all(piece.answer is None for piece in pieces[:-1])


def test_a_seed_repeats_an_answer_and_no_seed_does_not(llama: LocalModel) -> None:
    """Sampling is reproducible by seed alone, whatever torch's global stream does."""
    torch.manual_seed(1)
    first = llama.generate("Hi", temperature=1.0, seed=9)
    torch.manual_seed(2)
    assert first == llama.generate("Hi", temperature=1.0, seed=9)
    texts = {llama.generate("Hi", temperature=1.0).text for _ in range(4)}
    assert len(texts) > 1


def test_streamed_pieces_carry_the_scores_of_the_answer(
    model: LocalModel, writer: LocalModel
) -> None:
    """Scores on the way are those of the answer, parts included, in order and without gaps."""
    for source, options in ((model, {}), (writer, {"tools": [CALCULATOR]})):
        pieces = list(source.stream("Hi", **options))
        whole = pieces[-1].answer
        found = tuple(token for piece in pieces for token in piece.tokens)
        assert whole is not None
        assert whole.tokens is not None
        assert whole.tokens[: len(found)] == found
        # the end of the text may still become a tag
        assert len(found) >= len(whole.tokens) - 5


def test_a_script_is_read_as_reasoning_text_and_call(writer: LocalModel) -> None:
    """A model that thinks, speaks and calls a tool is taken apart, scores included."""
    answer = writer.generate("Hi", tools=[CALCULATOR])
    assert ("Two and three.", "Let me see \u20ac.") == (answer.reasoning, answer.text)
    assert (ToolCall("calc", {"x": "2+3"}, raw='{"x": "2+3"}'),) == answer.tool_calls
    assert "tool_calls" == answer.finish_reason
    assert answer.tokens is not None
    assert answer.usage is not None
    assert answer.usage.output_tokens == len(answer.tokens)
    assert {"answer", "reasoning", "arguments", "other"} == {t.part for t in answer.tokens}
    assert "<|im_end|>" == answer.tokens[-1].token
    assert (
        '{"name": "calc", "arguments": {"x": "2+3"}}'
        == "".join(t.token for t in answer.over("arguments").tokens or ()).strip()
    )


def test_a_streamed_script_shows_no_tag_and_no_half_character(writer: LocalModel) -> None:
    """Tags, calls and half characters never reach a reader."""
    pieces = list(writer.stream("Hi", tools=[CALCULATOR]))
    shown = [piece.text for piece in pieces] + [piece.reasoning for piece in pieces]
    assert not any(sign in text for text in shown for sign in ("<", "{", "\ufffd"))
    assert "Two and three." == "".join(piece.reasoning for piece in pieces)
    assert writer.generate("Hi", tools=[CALCULATOR]) == pieces[-1].answer


def test_without_tools_a_call_stays_text(writer: LocalModel) -> None:
    """Nobody offered a tool, so what looks like a call is the answer's text."""
    answer = writer.generate("Hi")
    assert "<tool_call>" in answer.text
    assert ((), "stop") == (answer.tool_calls, answer.finish_reason)


def test_a_malformed_call_keeps_its_text(tmp_path: Any) -> None:
    """Broken JSON gives a call without arguments, as it was written."""
    path = script_model(tmp_path / "broken", '<tool_call>\n{"name": "calc", "x\n</tool_call>')
    with LocalModel(path) as model:
        answer = model.generate("Hi", tools=[CALCULATOR])
    assert (ToolCall("calc", None, raw='{"name": "calc", "x'),) == answer.tool_calls


def test_a_template_that_opens_the_reasoning_block_is_followed(tmp_path: Any) -> None:
    """Where the prompt ends inside a reasoning block, the answer starts there."""
    path = script_model(tmp_path / "thinks", "hm\n</think>\nYes", open_think=True)
    with LocalModel(path, chat_template_kwargs={"open_think": True}) as model:
        assert model.prompt("Hi").thinking
        answer = model.generate("Hi")
    assert ("Yes", "hm") == (answer.text, answer.reasoning)


@pytest.mark.parametrize("stop", ["me", "\u20ac", "three.\n</think>", "see \u20ac.\n<"])
def test_a_stop_string_cuts_generate_and_stream_alike(writer: LocalModel, stop: str) -> None:
    """The answer ends before the stop string, and the model is not asked any further."""
    full = writer.generate("Hi")
    cut = writer.generate("Hi", stop=stop)
    pieces = list(writer.stream("Hi", stop=[stop]))
    assert cut == pieces[-1].answer
    assert cut.text == "".join(piece.text for piece in pieces)
    assert "stop" == cut.finish_reason
    assert full.text.startswith(cut.text)
    assert stop not in cut.text
    assert cut.usage is not None
    assert full.usage is not None
    assert cut.usage.output_tokens < full.usage.output_tokens


def test_the_token_limit_is_kept_to_the_token(model: LocalModel) -> None:
    """max_new_tokens bounds the answer, and the finish reason says so."""
    for limit in (1, 2, 17):
        answer = model.generate("Hi", max_new_tokens=limit)
        assert answer.usage is not None
        assert limit == answer.usage.output_tokens
        assert "length" == answer.finish_reason


def test_usage_counts_the_prompt_as_the_model_reads_it(llama: LocalModel) -> None:
    """Input tokens are those of the rendered prompt."""
    answer = llama.generate("Hi", max_new_tokens=1)
    assert answer.usage is not None
    assert llama.encode("Hi").shape[1] == answer.usage.input_tokens


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_greedy_tokens(llama: LocalModel) -> None:
    """Greedy answers on a GPU in float32 are those of the CPU."""
    with LocalModel(llama.path, device="cuda", dtype="float32", max_new_tokens=40) as model:
        for question in QUESTIONS:
            assert llama.generate(question).text == model.generate(question).text
