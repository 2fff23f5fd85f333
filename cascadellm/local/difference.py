"""The measurements behind `compare`. p = target, q = draft, pi = target distribution."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cascadellm.local.adaptive import expected_tokens
from cascadellm.local.compare import Comparison
from cascadellm.local.model import LocalModel
from cascadellm.local.pair_runner import PairRunner
from cascadellm.local.rule_base import Rule, TokenRule
from cascadellm.local.rules import Lossless
from cascadellm.local.verify import acceptance

__all__ = ["divergences", "measure"]

_REPEATS = 7


def divergences(q: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return D(p, q), KL(p || q) and JS(p, q) per row, in nats. Shape (..., vocab) -> (...)."""
    middle = (p + q) / 2

    def kl(a: Tensor, b: Tensor) -> Tensor:
        # where a = 0 the term is 0; where only b = 0 it is infinite, as it should be
        return torch.where(a > 0, a * (a.log() - b.log()), 0.0).sum(-1)

    distance = (p - q).clamp(min=0).sum(-1)
    return distance, kl(p, q), (kl(p, middle) + kl(q, middle)) / 2


def measure(
    draft: LocalModel,
    target: LocalModel,
    prompts: Sequence[Any],
    *,
    rule: Rule,
    temperature: float,
    max_new_tokens: int,
    gammas: Sequence[int],
) -> Comparison:
    """Measure; arguments as in `compare`."""
    runner = PairRunner(draft, target, Lossless(), gamma=1, block=False, names=None, candidates=0)
    settings = target.settings(temperature=0.0, max_new_tokens=max_new_tokens)
    rows = [_rows(runner, runner.prompt(one, None, settings), max_new_tokens) for one in prompts]
    q_logits, p_logits = (torch.cat(side) for side in zip(*rows, strict=True))
    q, p = q_logits.softmax(-1), p_logits.softmax(-1)
    distance, kl, js = divergences(q, p)
    agree = (q_logits.argmax(-1) == p_logits.argmax(-1)).double().mean()
    rate = float(_acceptance(q_logits, p_logits, rule, temperature))
    extra = _extra_steps(p_logits, rule, temperature)
    draft_s, target_s, verify_s = _times(runner, prompts[0], settings, gammas)
    speedup = {}
    for gamma in gammas:
        steps = gamma + extra * rate**gamma
        per_token = (steps * draft_s + verify_s[gamma]) / expected_tokens(rate, gamma)
        speedup[gamma] = target_s / per_token
    return Comparison(
        tokens=len(q), total_variation=float(distance.mean()), kl=float(kl.mean()),
        js=float(js.mean()), agreement=float(agree), acceptance=rate, draft_s=draft_s,
        target_s=target_s, verify_s=verify_s, speedup=speedup,
    )  # fmt: skip


def _rows(runner: PairRunner, prompt: Any, count: int) -> tuple[Tensor, Tensor]:
    """Return both models' logits at each token of the target's own answer."""
    settings = runner.target.settings(temperature=0.0)
    decoder = runner.decoder(prompt, settings)
    start = len(decoder.tokens)
    found: list[tuple[Tensor, Tensor]] = []
    while len(decoder.tokens) < start + count:
        one = decoder.round(1)
        # the token after a kept draft has no draft row in a lossless round
        taken = min(len(one.tokens), len(one.draft_rows))
        assert one.target_rows is not None
        found.append((torch.cat(one.draft_rows[:taken]), one.target_rows[:taken]))
        if runner.target.eos_ids & set(one.tokens):
            break
    ours, theirs = zip(*found, strict=True)
    return torch.cat(ours).double(), torch.cat(theirs).double()


def _acceptance(q_logits: Tensor, p_logits: Tensor, rule: Rule, temperature: float) -> Tensor:
    """Return the mean acceptance of the rule at the temperature."""
    q, p = q_logits.softmax(-1), p_logits.softmax(-1)
    if temperature == 0:
        width = q.shape[-1]
        hot_q, hot_p = (torch.nn.functional.one_hot(x.argmax(-1), width).double() for x in (q, p))
        form = rule.greedy_form
    else:
        hot_q, hot_p = (q_logits / temperature).softmax(-1), (p_logits / temperature).softmax(-1)
        form = rule
    pi = form.target_distribution(q, p, draft_scaled=hot_q, target_scaled=hot_p)
    return acceptance(pi, hot_q).mean()


def _extra_steps(logits: Tensor, rule: Rule, temperature: float) -> float:
    """Return how often the token after a fully accepted block needs a draft step of its own."""
    if rule.lossless:
        return 0.0
    rows = logits.softmax(-1).unsqueeze(1)
    if temperature == 0:
        form = rule.greedy_form
        return statistics.fmean(not form.ignores_draft(row) for row in rows)
    if not isinstance(rule, TokenRule):
        return 1.0
    modes = (logits / temperature).softmax(-1).gather(-1, logits.argmax(-1, keepdim=True))
    pairs = zip(rows, modes.squeeze(-1).tolist(), strict=True)
    return statistics.fmean(1 - mode * rule.keeps_mode_only(row) for row, mode in pairs)


def _times(
    runner: PairRunner, messages: Any, settings: Any, gammas: Sequence[int]
) -> tuple[float, float, dict[int, float]]:
    """Return the time of a draft step, of a target step, and of a verify call per gamma."""
    prompt = runner.prompt(messages, None, settings)
    decoder = runner.decoder(prompt, settings)
    lanes = decoder.lanes
    text = decoder.tokens
    with torch.inference_mode():
        for lane in lanes:
            lane.forward(text, 1)

        def step(lane: Any, count: int) -> Callable[[], object]:
            def run() -> object:
                rows = lane.forward([text[-1]] * count, count)
                lane.rollback(len(text))
                # reading a value waits for the device
                return float(rows[0, 0])

            return run

        verify = {gamma: _median(step(lanes[1], gamma + 1)) for gamma in gammas}
        return _median(step(lanes[0], 1)), _median(step(lanes[1], 1)), verify


def _median(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)
