"""The shipped demo pair: its questions, its template, and what it can do."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadellm import Answer
from cascadellm.demo import SKILLS, Question, load, path, questions
from cascadellm.demo.tasks import held_out
from cascadellm.demo.tools import CALCULATOR, LOOKUP
from cascadellm.local import LocalModel


@pytest.fixture(scope="module")
def pair() -> dict[str, LocalModel]:
    """Load both models once."""
    return {"small": load("small"), "large": load("large")}


def share(model: LocalModel, items: list[Question]) -> float:
    """Return the share of questions answered right, greedily and in batches."""
    asked = [[{"role": "user", "content": item.question}] for item in items]
    answers = model.batch(asked, tools=list(items[0].tools) or None)
    return sum(said(item, answer) for item, answer in zip(items, answers, strict=True)) / len(items)


def said(item: Question, answer: Answer) -> bool:
    """Grade an answer, or the tool call where one is expected."""
    if item.call is None:
        return item.grade(answer.text)
    made = [{"name": call.name, "arguments": call.arguments} for call in answer.tool_calls]
    return made == [item.call]


@pytest.mark.parametrize("skill", SKILLS)
def test_the_same_seed_gives_the_same_questions_and_all_are_held_out(skill: str) -> None:
    """Questions depend on the seed alone, and none is on the training side of the split."""
    drawn = questions(20, 3, skill)
    assert drawn == questions(20, 3, skill)
    assert drawn != questions(20, 4, skill)
    assert all(held_out(item.query) for item in drawn)
    assert all(item.grade(item.solution) for item in drawn if item.call is None)


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("42", "40 + 2 = 42. The answer is 42.", True),
        ("42", "The answer is 42", True),
        ("42", "42 + 1 = 43. The answer is 43.", False),
        ("42", "", False),
        ("42", "no idea", False),
    ],
)
def test_grading_is_tolerant_in_form_and_strict_in_value(
    answer: str, text: str, right: bool
) -> None:
    """The last number of a worked answer counts, whatever stands around it."""
    assert right == Question("q", answer, "word_problem").grade(text)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_the_tokenizer_represents_any_text(pair: dict[str, LocalModel], text: str) -> None:
    """Encoding and decoding gives every text back."""
    tokenizer = pair["small"].tokenizer
    assert text == tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))


def test_the_weights_are_small_and_the_tokenizers_equal() -> None:
    """Both models together stay below 16 MB and share one tokenizer."""
    weights = [path(name) / "model.safetensors" for name in ("small", "large")]
    assert sum(file.stat().st_size for file in weights) < 16e6
    files = [(path(name) / "tokenizer.json").read_bytes() for name in ("small", "large")]
    assert files[0] == files[1]
    assert (Path(path("small")).parent / "MODEL_CARD.md").exists()


def test_the_template_renders_tools_calls_and_results(pair: dict[str, LocalModel]) -> None:
    """A whole tool exchange becomes one prompt that names the tool and its result."""
    call = {"name": "calculator", "arguments": {"expression": "1 + 2"}}
    text = pair["small"].tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "What is 1 + 2?"},
            {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "content": "3"},
        ],
        tools=[CALCULATOR, LOOKUP],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert '{"name": "calculator", "arguments": {"expression": "1 + 2"}}' in text
    assert "<tool_response>\n3\n</tool_response>" in text
    assert pair["small"].context_window >= 2048


@pytest.mark.parametrize(
    ("name", "skill", "steps", "least", "most"),
    [
        ("small", "word_problem", 1, 0.85, 1.0),
        ("small", "word_problem", 4, 0.0, 0.65),
        ("large", "word_problem", 1, 0.92, 1.0),
        ("large", "word_problem", 2, 0.9, 1.0),
        ("large", "word_problem", 4, 0.7, 1.0),
        ("large", "one_fact", None, 0.9, 1.0),
        ("large", "two_facts", None, 0.9, 1.0),
        ("large", "calculator", None, 0.9, 1.0),
        ("large", "lookup", None, 0.9, 1.0),
        ("large", "json", None, 0.9, 1.0),
    ],
)
def test_the_models_can_do_what_the_card_says(
    pair: dict[str, LocalModel],
    name: str,
    skill: str,
    steps: int | None,
    least: float,
    most: float,
) -> None:
    """On forty held-out questions each skill stays within the margins of the model card."""
    found = share(pair[name], questions(40, 99, skill, steps=steps))
    assert least <= found <= most
