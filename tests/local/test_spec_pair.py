"""SpeculativePair on real modules: equal to the target, cut at the same place, honest records."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from cascadellm.answer import Request
from cascadellm.cascade import Cascade
from cascadellm.errors import (
    ConfigurationError,
    ContextWindowError,
    ModelError,
    VocabularyMismatchError,
)
from cascadellm.local import (
    LocalModel,
    SequentialPair,
    SpeculativeCascade,
    SpeculativePair,
    TokenCascade,
    rules,
)
from cascadellm.local.cache import Rollback, new_cache
from cascadellm.local.quick import QuickForward
from cascadellm.policies import Policy, Threshold
from cascadellm.scores import mean_logprob
from cascadellm.testing import FakeModel
from cascadellm.tier import LocalLike, Price, Tier
from tests.local.spec_models import noisy_copy
from tests.local.tiny_models import _save, tiny_llama, tiny_qwen2, tiny_t5, tiny_tokenizer

ASKS = ["Hi", "What is 2 + 3?", "Tell me about rain."]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("pairs")
    large = tiny_llama(base / "large", layers=3, width=64, seed=1)
    seq = tiny_t5(base / "t5-large", layers=3, seed=2)
    return {
        "large": large,
        "small": noisy_copy(large, base / "small"),
        "t5-large": seq,
        "t5-small": noisy_copy(seq, base / "t5-small", noise=0.001),
    }


@pytest.fixture(scope="module")
def models(folders):
    found = {name: LocalModel(path, max_new_tokens=40) for name, path in folders.items()}
    yield found
    for model in found.values():
        model.close()


@pytest.fixture(params=["", "t5-"], ids=["causal", "t5"])
def pair_of(request, models):
    small, large = models[f"{request.param}small"], models[f"{request.param}large"]

    def build(rule=None, gamma=5, **kwargs):
        return SpeculativePair(small, large, rule, gamma, **kwargs)

    return build


def plain(answer):
    return answer.text, answer.finish_reason, answer.usage, [t.token for t in answer.tokens]


def counts(answer):
    return {k: v for k, v in answer.speculation.items() if k != "tokens"}


def same(one, other) -> bool:
    """Equal answers, whose times and rounding of scores may differ."""
    return plain(one) == plain(other)


@pytest.mark.parametrize("gamma", [1, 2, 3, 4, 5, 6, 7, 8, "adaptive"])
def test_greedy_lossless_is_the_target_token_for_token(pair_of, gamma) -> None:
    """For every gamma, streamed or not, text, tokens and finish reason are the target's own."""
    pair = pair_of(rules.Lossless(), gamma)
    for ask in ASKS:
        alone = pair.target.generate(ask)
        answer = pair.generate(ask)
        assert plain(alone) == plain(answer)
        for ours, own in zip(answer.tokens, alone.tokens, strict=True):
            assert own.logprob == pytest.approx(ours.logprob, abs=2e-3)
            assert own.entropy == pytest.approx(ours.entropy, abs=2e-3)
        pieces = list(pair.stream(ask))
        assert alone.text == "".join(piece.text for piece in pieces)
        assert same(answer, pieces[-1].answer)
        streamed = [score for piece in pieces[:-1] for score in piece.tokens]
        assert [t.token for t in answer.tokens[: len(streamed)]] == [t.token for t in streamed]
        assert pieces[-1].answer.tokens[: len(streamed)] == tuple(streamed)


def test_a_decoder_deeper_than_its_encoder_works(models, tmp_path) -> None:
    """The cache counts the decoder's layers."""
    tokenizer = models["t5-large"].tokenizer
    config = T5Config.from_pretrained(models["t5-large"].path)
    config.num_decoder_layers = config.num_layers + 2
    folder = _save(T5ForConditionalGeneration, config, tokenizer, tmp_path / "deep", 4, (2.5, 8.0))
    deep = LocalModel(folder, max_new_tokens=12)
    answer = SpeculativePair(models["t5-small"], deep, rules.Lossless(), 3).generate("Hi")
    assert plain(deep.generate("Hi")) == plain(answer)


def test_a_draft_that_agrees_saves_target_calls(pair_of) -> None:
    """The noisy draft is accepted often: fewer target calls than tokens."""
    answer = pair_of(rules.Lossless(), 4).generate(ASKS[1])
    spoken = answer.speculation
    assert spoken["verify_calls"] < answer.usage.output_tokens
    assert 0 < spoken["accepted"] <= spoken["drafted"]


def test_every_token_has_a_source_and_the_counts_add_up(pair_of) -> None:
    """Spans cover the text without overlap and agree with the per-token sources."""
    for temperature in (0.0, 1.0):
        answer = pair_of(rules.TokenV3(0.5), 3).generate(ASKS[2], temperature=temperature, seed=4)
        record = answer.speculation
        assert answer.usage.output_tokens == len(record["tokens"])
        assert record["accepted"] == sum(entry[1] for entry in record["tokens"])
        assert record["rejected"] <= record["verify_calls"]
        # the row of a last token that the draft was not asked for costs a step of its own
        assert record["draft_steps"] - record["drafted"] in (0, 1)
        assert ("TokenV3", 0.5, 3) == (record["rule"], record["alpha"], record["gamma"])
        ends = [0]
        for start, end, name in answer.spans:
            assert ends[-1] == start
            assert name in pair_of().model_name.split("+")
            ends.append(end)
        assert len(answer.text) == ends[-1]


def test_candidates_of_both_models_stand_beside_each_token(pair_of) -> None:
    """Provenance holds text, source and both models' likeliest tokens; 0 switches it off."""
    answer = pair_of(rules.TokenV3(0.5), candidates=2).generate(ASKS[0])
    for text, by_draft, ours, theirs in answer.speculation["tokens"]:
        assert isinstance(text, str)
        assert by_draft in (0, 1)
        assert 2 == len(ours) == len(theirs)
        assert all(0 <= prob <= 1 for _, prob in ours + theirs)
    assert "tokens" not in pair_of(candidates=0).generate(ASKS[0]).speculation


def test_scores_are_those_of_the_target_distribution(models) -> None:
    """The logprob of each token is log pi(token) at temperature 1."""
    pair = SpeculativePair(models["small"], models["large"], rules.Ensemble(0.5), 3)
    answer = pair.generate(ASKS[0], temperature=1.0, seed=2, max_new_tokens=12, top_logprobs=3)
    ids = models["large"].encode(ASKS[0])
    tokens = models["large"].tokenizer.get_vocab()
    written = pair._runner.decoder(
        models["large"].prompt(ASKS[0]), pair.settings(temperature=1.0, seed=2)
    )
    while len(written.tokens) < ids.shape[1] + 12:
        written.round(3)
    whole = torch.tensor([written.tokens[: ids.shape[1] + 12]])
    with torch.inference_mode():
        rows = [m.module(whole).logits[0].softmax(-1) for m in (models["small"], models["large"])]
    mixed = (0.5 * rows[0] + 0.5 * rows[1]).log()
    for place, score in enumerate(answer.tokens):
        row = mixed[ids.shape[1] + place - 1]
        token = written.tokens[ids.shape[1] + place]
        assert score.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert score.top[0][1] == pytest.approx(float(row.max()), abs=1e-4)
    assert tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_cut_at_the_same_place_for_every_gamma(pair_of, temperature) -> None:
    """Token limits and stop strings end the answer where the target alone would end it."""
    rule = rules.Lossless() if temperature == 0 else rules.TokenV3(1.0)
    whole = pair_of(rule, 1).generate(ASKS[1], temperature=temperature, seed=3)
    stop = whole.text[4:7]
    for gamma in (1, 2, 5, 8):
        pair = pair_of(rule, gamma)
        for limit in (1, 2, 7):
            cut = pair.generate(ASKS[1], max_new_tokens=limit, temperature=temperature, seed=3)
            assert "length" == cut.finish_reason
            assert limit == cut.usage.output_tokens
            assert plain(whole)[3][:limit] == plain(cut)[3]
        stopped = pair.generate(ASKS[1], stop=[stop], temperature=temperature, seed=3)
        assert "stop" == stopped.finish_reason
        assert whole.text[: whole.text.index(stop)] == stopped.text
        streamed = list(pair.stream(ASKS[1], stop=[stop], temperature=temperature, seed=3))
        assert stopped.text == "".join(piece.text for piece in streamed)


def test_an_end_token_inside_an_accepted_block_ends_the_answer(models) -> None:
    """With an end token that the target writes early, every gamma stops right after it."""
    target, draft = models["large"], models["small"]
    text = [t.token for t in target.generate(ASKS[0]).tokens]
    number = target.tokenizer.convert_tokens_to_ids
    runner = target._runner.loaded
    ended = text[5]
    old = runner.eos_ids
    ids = target.encode(ASKS[0])[0].tolist()
    plain_pair = SpeculativePair(draft, target, rules.Lossless(), 3)
    decoder = plain_pair._runner.decoder(target.prompt(ASKS[0]), plain_pair.settings())
    while len(decoder.tokens) < len(ids) + 8:
        decoder.round(3)
    end_id = decoder.tokens[len(ids) + 5]
    object.__setattr__(runner, "eos_ids", old | {end_id})
    try:
        alone = target.generate(ASKS[0])
        assert "stop" == alone.finish_reason
        for gamma in (1, 3, 8):
            found = SpeculativePair(draft, target, rules.Lossless(), gamma).generate(ASKS[0])
            assert plain(alone) == plain(found)
    finally:
        object.__setattr__(runner, "eos_ids", old)
    assert ended is not None
    assert number is not None


def test_all_processors_act_on_both_rows(models) -> None:
    """With the same model twice nothing is ever rejected, whatever the settings are."""
    pair = SpeculativePair(models["large"], models["large"], rules.Lossless(), 4)
    for settings in (
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.8, "repetition_penalty": 1.3},
        {"temperature": 0.0, "repetition_penalty": 1.5},
    ):
        answer = pair.generate(ASKS[1], seed=1, **settings)
        assert 0 == answer.speculation["rejected"], settings
    alone = models["large"].generate(ASKS[1], repetition_penalty=1.5)
    assert plain(alone) == plain(pair.generate(ASKS[1], repetition_penalty=1.5))


def test_an_always_accepting_rule_is_the_draft_alone_with_the_same_seed(pair_of) -> None:
    """Sampled with one seed, the pair writes what the draft model writes by itself."""
    pair = pair_of(rules.TokenV3(1.0), 4)
    alone = pair.draft.generate(ASKS[2], temperature=1.0, seed=9)
    assert plain(alone)[3] == plain(pair.generate(ASKS[2], temperature=1.0, seed=9))[3]


def test_block_verification_equals_token_verification_at_temperature_0(pair_of) -> None:
    """Greedy answers do not depend on how blocks are verified."""
    for rule in (rules.Lossless(), rules.TokenV3(0.4)):
        one = pair_of(rule, 4, block_verification=True).generate(ASKS[0])
        assert same(pair_of(rule, 4).generate(ASKS[0]), one)


def test_the_sequential_pair_writes_the_same_greedy_text(pair_of) -> None:
    """At temperature 0 the baseline and the loop write the same tokens."""
    for rule in (rules.Chow(0.6), rules.TokenV3(0.4)):
        fast = pair_of(rule, 4)
        slow = SequentialPair(fast.draft, fast.target, rule)
        assert plain(fast.generate(ASKS[1])) == plain(slow.generate(ASKS[1]))


def test_a_pair_is_a_local_model_for_the_engine(pair_of) -> None:
    """It has the interface of LocalLike; batch equals one by one."""
    pair = pair_of(rules.TokenV3(0.4), 3)
    assert isinstance(pair, LocalLike)
    assert pair.context_window == pair.target.context_window
    together = pair.batch(ASKS, temperature=0.8, seed=1)
    for ask, answer in zip(ASKS, together, strict=True):
        assert same(pair.generate(ask, temperature=0.8, seed=1), answer)


async def test_async_answers_equal_sync_answers_and_can_be_cancelled(pair_of) -> None:
    """Agenerate and astream give the same answer; a cancelled task stops between rounds."""
    pair = pair_of(rules.Lossless(), 3)
    expected = pair.generate(ASKS[0])
    assert same(expected, await pair.agenerate(ASKS[0]))
    pieces = [piece async for piece in pair.astream(ASKS[0])]
    assert expected.text == "".join(piece.text for piece in pieces)
    assert same(expected, pieces[-1].answer)
    task = asyncio.create_task(pair.agenerate(ASKS[0], max_new_tokens=200))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_concurrent_callers_get_their_own_answers(models) -> None:
    """Two pairs in both directions and the models alone share the locks without a deadlock."""
    forth = SpeculativePair(models["small"], models["large"], rules.Lossless(), 3)
    back = SpeculativePair(models["large"], models["small"], rules.Lossless(), 3)
    work = [forth, back, models["small"], models["large"]]
    expected = [model.generate(ASKS[1]).text for model in work]
    found: dict[int, str] = {}

    def ask(place: int) -> None:
        found[place] = work[place].generate(ASKS[1]).text

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert expected == [found[place] for place in range(len(work))]


def test_a_pair_answers_as_one_tier_of_a_cascade(models) -> None:
    """SpeculativeCascade on a boundary folds both tiers into one, named by both."""
    tiers = [
        Tier(models["small"], name="small", price=Price(1, 2)),
        Tier(models["large"], name="large", price=Price(10, 20, per_second=0.5)),
        FakeModel("a checked answer", name="checked"),
    ]
    low = [SpeculativeCascade(rules.Lossless(), gamma=3), Threshold(mean_logprob, -1e9)]
    cascade = Cascade(tiers, low)
    assert ["small+large", "checked"] == [unit.tier.label for unit in cascade.units]
    joined = cascade.units[0].tier
    assert Price(11, 22, per_second=0.5) == joined.price
    answer = joined.model.generate(ASKS[0])
    assert plain(models["large"].generate(ASKS[0])) == plain(answer)
    assert {"small", "large"} >= {name for *_, name in answer.spans}
    assert mean_logprob(answer) == pytest.approx(
        mean_logprob(models["large"].generate(ASKS[0])), abs=1e-4
    )
    assert Request is not None


def test_the_policies_are_values_with_a_config() -> None:
    """Both token-level policies survive to_config and from_config."""
    for policy in (
        SpeculativeCascade(),
        SpeculativeCascade(rules.Lenient(0.5), gamma="adaptive", block_verification=True),
        TokenCascade(rules.Chow(0.3)),
    ):
        assert "token" == policy.level
        assert policy == Policy.from_config(policy.to_config())
        assert hash(policy) == hash(Policy.from_config(policy.to_config()))


@pytest.mark.parametrize("gamma", [0, -1, 1.5, True, "fast", None])
def test_a_gamma_that_drafts_nothing_is_refused(gamma) -> None:
    """Gamma is a whole number >= 1 or the word adaptive, checked at construction."""
    with pytest.raises(ConfigurationError, match="gamma must be a whole number >= 1"):
        SpeculativeCascade(gamma=gamma)


def test_a_wrong_rule_or_model_is_refused(models) -> None:
    """What is no rule or no local model is named at construction."""
    with pytest.raises(ConfigurationError, match="rule must be a deferral rule"):
        SpeculativeCascade(rule="TokenV3")
    with pytest.raises(ConfigurationError, match="must be a LocalModel, got a FakeModel"):
        SpeculativePair(FakeModel("x"), models["large"])
    with pytest.raises(ConfigurationError, match="tier 'fake' is a FakeModel"):
        Cascade([Tier(FakeModel("x"), name="fake"), models["large"]], SpeculativeCascade())
    with pytest.raises(ConfigurationError, match="candidates must be"):
        SpeculativePair(models["small"], models["large"], candidates=-1)
    with pytest.raises(ConfigurationError, match="of one family"):
        SpeculativePair(models["t5-small"], models["large"])


def test_two_devices_are_refused(models, monkeypatch) -> None:
    """A pair on two devices would move rows at every step."""
    monkeypatch.setattr(models["small"], "_device", torch.device("meta"))
    with pytest.raises(ConfigurationError, match="on one device, got meta and cpu"):
        SpeculativePair(models["small"], models["large"])


def test_another_vocabulary_names_the_first_difference(models, tmp_path) -> None:
    """A token that stands for something else is named, with both readings."""
    other = LocalModel(tiny_llama(tmp_path / "other", extra=("Zeitgeist",)))
    words = len(tiny_tokenizer())
    difference = rf"token {words} is 'Zeitgeist' for the draft and nothing"
    with pytest.raises(VocabularyMismatchError, match=rf"{difference}.*work at answer level"):
        SpeculativePair(other, models["large"])


def test_padded_vocabularies_of_one_family_work(models, folders, tmp_path) -> None:
    """With the same tokens and wider logits, padding ids are never written."""
    size = len(tiny_tokenizer())
    wide = LocalModel(
        tiny_llama(tmp_path / "wide", vocab=size + 21, layers=3, width=64, seed=1),
        max_new_tokens=40,
    )
    for draft, target in ((wide, models["large"]), (models["small"], wide)):
        pair = SpeculativePair(draft, target, rules.Lossless(), 3)
        answer = pair.generate(ASKS[0])
        assert all(token.token for token in answer.tokens)
        if target is models["large"]:
            assert plain(target.generate(ASKS[0])) == plain(answer)


def test_a_head_narrower_than_the_tokenizer_is_refused(models, tmp_path) -> None:
    """A model without logits for some tokens cannot judge them."""
    size = len(tiny_tokenizer())
    narrow = LocalModel(tiny_llama(tmp_path / "narrow", vocab=size - 3))
    with pytest.raises(VocabularyMismatchError, match=f"gives {size - 3} logits"):
        SpeculativePair(narrow, models["large"])


def test_a_prompt_too_long_for_the_draft_is_refused(models, tmp_path) -> None:
    """The shorter context window of the two binds."""
    short = LocalModel(tiny_llama(tmp_path / "short", window=64))
    pair = SpeculativePair(short, models["large"])
    assert 64 == pair.context_window
    with pytest.raises(ContextWindowError, match="short reads at most 64 tokens"):
        pair.generate("x" * 100)


def test_a_full_window_is_filled_to_the_last_token(models, tmp_path) -> None:
    """Without a token limit the answer ends where the window does, for every gamma."""
    folder = tiny_llama(tmp_path / "w", layers=1, window=96, seed=3)
    target = LocalModel(folder, max_new_tokens=None)
    draft = LocalModel(noisy_copy(target.path, tmp_path / "d"), max_new_tokens=None)
    alone = target.generate("abc")
    for gamma in (1, 6):
        found = SpeculativePair(draft, target, rules.Lossless(), gamma).generate("abc")
        assert plain(alone) == plain(found)


def sliding(folder, seed: int = 0, window: int = 16) -> str:
    tokenizer = tiny_tokenizer()
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        sliding_window=window, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    return _save(MistralForCausalLM, config, tokenizer, folder, seed, (20.0, 8.0))


def test_sliding_window_caches_roll_back(tmp_path) -> None:
    """Beyond the window, greedy lossless still equals the target for every gamma."""
    target = LocalModel(sliding(tmp_path / "t"), max_new_tokens=60)
    draft = LocalModel(noisy_copy(target.path, tmp_path / "d", noise=0.02), max_new_tokens=60)
    alone = target.generate(ASKS[2])
    for gamma in (1, 4, 8):
        pair = SpeculativePair(draft, target, rules.Lossless(), gamma)
        answer = pair.generate(ASKS[2])
        assert plain(alone) == plain(answer)
    assert answer.speculation["accepted"] > 0
    assert answer.speculation["rejected"] > 0


def test_a_cache_that_cannot_roll_back_is_refused(models, monkeypatch) -> None:
    """A layer with another kind of state is named, with the way out."""

    class RecurrentLayer:
        is_sliding = False

    class Odd:
        def __init__(self, **kwargs):
            self.layers = [RecurrentLayer()]

    monkeypatch.setattr("cascadellm.local.cache.DynamicCache", Odd)
    with pytest.raises(ConfigurationError, match="layer 0 keeps its past in a RecurrentLayer"):
        new_cache(models["large"].module, "large")


def test_caches_hold_the_text_and_nothing_more(models) -> None:
    """After every round both caches are as long as the text, and a rollback leaves no copy."""
    pair = SpeculativePair(models["small"], models["large"], rules.TokenV3(0.2), 6)
    decoder = pair._runner.decoder(models["large"].prompt(ASKS[0]), pair.settings())
    for _ in range(8):
        decoder.round(6)
        for lane in (decoder._draft_lane, decoder._target_lane):
            assert len(decoder.tokens) - 2 <= lane.length < len(decoder.tokens)
            for layer in lane._cache.layers:
                assert lane.length == layer.keys.shape[-2]
                spare = layer.keys.untyped_storage().nbytes() / layer.keys.nbytes
                assert spare <= (lane.length + 8) / lane.length


def test_mutation_a_missing_rollback_is_visible(models, monkeypatch) -> None:
    """Without taking rejected drafts back the text is no longer the target's."""
    alone = models["large"].generate(ASKS[0])
    pair = SpeculativePair(models["small"], models["large"], rules.Lossless(), 4)
    monkeypatch.setattr(Rollback, "__call__", lambda self, length, removed: None)
    try:
        broken = plain(pair.generate(ASKS[0]))
    except RuntimeError:
        # masks and cached keys no longer have one length
        broken = None
    assert plain(alone) != broken


@pytest.mark.parametrize("build", [tiny_llama, tiny_qwen2, sliding])
def test_the_quick_forward_pass_is_bitwise_equal_or_not_used(build, tmp_path) -> None:
    """Known families run on their own layers with equal results; others keep their forward."""
    module = LocalModel(build(tmp_path / "m")).module
    quick = QuickForward.of(module, 8)
    assert (build is sliding) == (quick is None)
    if quick is None:
        return
    ours, theirs = new_cache(module, "m"), new_cache(module, "m")
    with torch.inference_mode():
        start = 0
        for count in (3, 1, 8, 1, 500):
            ids = torch.arange(count)[None] % 200
            own = module(ids, past_key_values=theirs, use_cache=True).logits
            if count > 8:
                break
            assert torch.equal(own, quick(ids, ours, start))
            start += count


def test_mutation_a_quick_forward_that_differs_is_not_used(tmp_path, monkeypatch) -> None:
    """The probe compares with the model's forward pass and turns a wrong one down."""
    module = LocalModel(tiny_llama(tmp_path / "m")).module
    right = QuickForward.__call__
    assert QuickForward.of(module, 8) is not None
    monkeypatch.setattr(QuickForward, "__call__", lambda self, *given: right(self, *given) + 1e-6)
    assert QuickForward.of(module, 8) is None


def test_a_closed_pair_says_so(tmp_path) -> None:
    """Closing frees both models; a later call and an answer under way raise ModelError."""
    target = LocalModel(tiny_llama(tmp_path / "t"))
    pair = SpeculativePair(LocalModel(tiny_llama(tmp_path / "d", seed=3)), target, gamma=2)
    pieces = pair.stream(ASKS[0])
    next(pieces)
    pair.close()
    with pytest.raises(ModelError, match="is closed"):
        list(pieces)
    with pytest.raises(ModelError, match="is closed"):
        pair.generate(ASKS[0])
