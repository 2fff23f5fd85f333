"""Learned routers: what they learn, what a file keeps, and how `Route` uses them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from cascadellm import Policy, Request, Route, Threshold
from cascadellm.calibration import (
    CalibrationError,
    CalibrationRecords,
    InsufficientDataError,
    LearnedRouter,
    calibrate_threshold,
    fit_learned_score,
    fit_router,
)
from cascadellm.demo import embed
from cascadellm.evaluation import evaluate
from cascadellm.testing import FakeModel
from tests.engine.running import MODES
from tests.policies.both_frameworks import FRAMEWORKS, record_of

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
DATA = os.environ.get("CASCADELLM_DATA", "")
HARD, EASY = ("prove", "integral", "theorem"), ("capital", "colour", "name")


def counted(texts: list[str]) -> list[list[float]]:
    """Embed texts by their words."""
    return [embed(text, 64) for text in texts]


def asked(n: int, seed: int = 0) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Return questions whose topic, not whose length, says which tier is right."""
    rng = np.random.default_rng(seed)
    hard = rng.random(n) < 0.5
    filler = rng.integers(1, 40, n)
    texts = [
        f"{(HARD if h else EASY)[rng.integers(3)]} " + "of it " * int(k)
        for h, k in zip(hard, filler, strict=True)
    ]
    small = rng.random(n) < np.where(hard, 0.2, 0.9)
    large = rng.random(n) < 0.9
    return texts, np.column_stack((small, large)).astype(float)


def norm(score: Any, correct: Any) -> float:
    """Return how well a score defers: 0 = random, 1 = oracle."""
    records = CalibrationRecords.of(np.asarray(score), correct)
    return evaluate(records, {"it": np.asarray(score)}, resamples=0)["it"].values["norm"]


@pytest.mark.parametrize("target", ["gain", "correct"])
def test_router_when_the_topic_decides(target: Any) -> None:
    """A router finds hard questions that it has not seen, where their length says nothing."""
    texts, correct = asked(400)
    router = fit_router(texts, correct, embed=counted, target=target).router
    unseen, truth = asked(2000, seed=1)
    score = [router(Request(text, text)) for text in unseen]

    assert norm(score, truth) > 0.5
    assert abs(norm([-len(text) for text in unseen], truth)) < 0.1
    assert router.low <= min(score)  # type: ignore[type-var]
    assert max(score) <= router.high  # type: ignore[type-var]


def test_out_of_fold_scores_when_labels_are_noise() -> None:
    """Cross-fitted scores see nothing in noise; scores on the fitted records themselves do."""
    texts, _ = asked(300)
    noise = np.random.default_rng(7).integers(0, 2, (300, 2)).astype(float)

    def random_words(batch: list[str]) -> Any:
        return [np.random.default_rng(crc32(t.encode())).normal(size=80) for t in batch]

    unique = [f"{i} {text}" for i, text in enumerate(texts)]
    fitted = fit_router(unique, noise, embed=random_words)
    seen = [fitted.router(Request(text, text)) for text in unique]

    assert abs(norm(fitted.out_of_fold, noise)) < 0.15
    # the same check, on scores of records that the model has seen: it would be fooled
    assert norm(seen, noise) > 0.15


def test_file_when_a_router_is_saved(tmp_path: Path) -> None:
    """The file is JSON that holds numbers and names, and gives the same scores back."""
    texts, correct = asked(200)
    router = fit_router(texts, correct, embed=counted, ids=[str(i) for i in range(200)]).router
    path = router.save(tmp_path / "router.json")
    back = LearnedRouter.load(path, embed=counted)

    assert "counted" == json.loads(path.read_text("utf-8"))["embedder"]
    assert router == back
    for text in texts[:20]:
        assert router(Request(text, text)) == back(Request(text, text))
    with pytest.raises(CalibrationError, match="exists"):
        router.save(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other"}, "schema"),
        ({"small": {}}, "incomplete"),
        ({"scales": [1.0]}, "do not fit"),
        ({"extra": 1}, "incomplete"),
    ],
)
def test_file_when_it_is_damaged(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """A file that is no router is refused, naming what is wrong."""
    texts, correct = asked(60)
    config = fit_router(texts, correct, embed=counted).router.to_config()
    path = tmp_path / "router.json"
    path.write_text(json.dumps({**config, **change}), "utf-8")
    with pytest.raises(CalibrationError, match=message):
        LearnedRouter.load(path, embed=counted)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("framework", ["engine", *FRAMEWORKS])
def test_route_when_a_router_decides(framework: str, mode: str) -> None:
    """A router is a score of `Route`, in both frameworks, sync, async and streamed."""
    texts, correct = asked(300)
    router = fit_router(texts, correct, embed=counted).router
    tiers = [FakeModel("ok", name="small"), FakeModel("ok", name="large")]
    found = {
        question: record_of(framework, mode, tiers, Route(router, -0.3), question)
        for question in ("name of it", "prove of it")
    }

    assert ["small", "large"] == [record["answered_by"] for record in found.values()]
    skipped = found["prove of it"]["attempts"][0]
    assert ("skip", "route", "router") == (
        skipped["action"],
        skipped["code"],
        skipped["score_name"],
    )


def test_config_when_policies_hold_what_was_fitted() -> None:
    """A policy with a router, or with a learned score, survives its config."""
    texts, correct = asked(80)
    route = Route(fit_router(texts, correct, embed=counted).router, 0.1)
    data = json.loads(json.dumps(route.to_config()))
    back: Any = Policy.from_config(data, allow={"counted": counted})
    score = fit_learned_score({"mean": np.linspace(-2, 0, 80)}, correct).score
    learned = Threshold(score, 0.5)

    assert route == back
    assert back.score(Request("x", "prove it")) == route.score(Request("x", "prove it"))
    # nothing is imported for the embedding model: without a name the tier is asked, and why is said
    assert Policy.from_config(data) == route
    assert learned == Policy.from_config(json.loads(json.dumps(learned.to_config())))


@pytest.mark.parametrize(
    ("other", "reason"),
    [(lambda texts: [[1.0] for _ in texts], "expected an embedding of 64"), (None, "needs the")],
)
def test_route_when_the_embedding_model_is_another(other: Any, reason: str) -> None:
    """A router without its embedding model gives no score, so the tier is asked, or says why."""
    texts, correct = asked(60)
    config = fit_router(texts, correct, embed=counted).router.to_config()
    router = LearnedRouter.from_config(config, embed=other)
    tiers = [FakeModel("ok", name="small"), FakeModel("ok", name="large")]
    asks = record_of("engine", "invoke", tiers, Route(router, 9.0))
    skips = record_of("engine", "invoke", tiers, Route(router, 9.0, missing="skip"))

    assert ("small", "large") == (asks["answered_by"], skips["answered_by"])
    assert reason in skips["attempts"][0]["reason"]


def test_threshold_when_calibrated_on_the_fitted_records() -> None:
    """Calibration refuses records that the router was fitted on."""
    texts, correct = asked(200)
    ids = [f"row {i}" for i in range(200)]
    router = fit_router(texts, correct, embed=counted, ids=ids).router
    scores = [router(Request(text, text)) for text in texts]
    records = CalibrationRecords.of(scores, correct, ids=ids).described([router])
    with pytest.raises(CalibrationError, match=r"fitted|tuned|seen"):
        calibrate_threshold(records, target_risk=0.2)


def test_router_when_a_local_model_embeds() -> None:
    """A local model's hidden states tell kinds of questions apart, and are the same twice."""
    pytest.importorskip("torch")
    from cascadellm.demo import load, questions

    model = load("small")
    kinds = [(kind, q.question) for kind in ("calculator", "json") for q in questions(30, 5, kind)]
    correct = np.array([[float(kind == "json"), 1.0] for kind, _ in kinds])
    texts = [text for _, text in kinds]
    router = fit_router(texts, correct, embed=model, with_length=False).router
    (one,), (two,) = model.embed_documents([texts[0]]), model.embed_documents([texts[0]])
    unseen = [(k, q.question) for k in ("calculator", "json") for q in questions(15, 9, k)]
    scores = {k: [router(Request(t, t)) for kk, t in unseen if kk == k] for k, _ in unseen}

    assert (one, model.module.config.hidden_size) == (two, len(one))
    assert min(scores["json"]) > max(scores["calculator"])  # type: ignore[type-var]
    model.close()


@pytest.mark.parametrize(
    ("count", "change", "error", "message"),
    [
        (10, {}, InsufficientDataError, "at least 40"),
        (60, {"lengths": [1.0]}, CalibrationError, "as many lengths"),
        (60, {"embed": lambda t: [[0.0] for _ in t], "with_length": False}, CalibrationError,
         "look alike"),
        (60, {"embed": lambda t: [[float("nan")] for _ in t]}, CalibrationError, "finite"),
        (60, {"embed": lambda t: [[0.0] * (1 + i % 2) for i in range(len(t))]}, CalibrationError,
         "one length"),
    ],
)  # fmt: skip
def test_arguments_when_they_are_wrong(
    count: int, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    """What cannot be fitted is refused with what was expected."""
    texts, correct = asked(count)
    with pytest.raises(error, match=message):
        fit_router(texts, correct, **{"embed": counted, **change})


@pytest.mark.skipif(not (DATA and (Path(DATA) / "replay").is_dir()), reason="set CASCADELLM_DATA")
def test_router_when_compared_with_prompt_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """On RouteLLM's MMLU records a router beats prompt length, with labels of its own split only.

    The check has power: a router whose labels are shuffled does not.
    """
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import replay_data
    import replay_splits

    records, groups = replay_data.routellm(Path(DATA), "mmlu")
    assert records.correct is not None
    fit = replay_splits.learned_router(groups)
    shuffled = CalibrationRecords.of(
        records.scores[:, 0], np.random.default_rng(1).permutation(records.correct)
    )
    for seed in (0, 1):
        order = np.random.default_rng(seed).permutation(len(records))
        train, test = order[:1500], order[1500:]
        length = norm(records.scores[test, 0], records.correct[test])
        assert norm(fit(train, records)[test], records.correct[test]) > length + 0.03
        assert norm(fit(train, shuffled)[test], records.correct[test]) < length
