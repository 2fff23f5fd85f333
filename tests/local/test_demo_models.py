"""The shipped demo pair: its questions, its template, and what it can do."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadellm import Answer
from cascadellm.demo import SKILLS, Question, embed, load, path, questions
from cascadellm.demo.tasks import held_out
from cascadellm.demo.tools import CALCULATOR, LOOKUP, calculator
from cascadellm.demo.train_evaluate import Subject
from cascadellm.demo.train_text import conversation, render
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
        ("1042", "It is 1,042.", True),
        ("Orla", "orla", True),
        ("Orla", "The home of Nia is Orlando.", False),
        ("Orla", "The home of Nia is Orla or Dover.", False),
        ("Orla", "The home of Nia is Orla. The answer is Dover.", False),
    ],
)
def test_grading_is_tolerant_in_form_and_strict_in_value(
    answer: str, text: str, right: bool
) -> None:
    """The last number or sentence counts, whatever stands around it."""
    assert right == Question("q", answer, "one_fact", wrong=("Dover",)).grade(text)


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


@pytest.mark.parametrize("layout", ["text-QA", "chat engine", "refine"])
def test_the_large_model_answers_in_the_layouts_of_a_query_engine(layout: str) -> None:
    """LlamaIndex's own prompts need no bending."""
    assert Subject(path("large")).grade(questions(40, 42, "one_fact"), layout) >= 0.75


def test_the_training_text_holds_no_held_out_question() -> None:
    """No message of the training text is or contains, as a line, a held-out question."""
    rng = Random(9)
    banned = {item.query for skill in SKILLS for item in questions(150, 5, skill)}
    for _ in range(600):
        _, (messages, _) = conversation(rng)
        lines = {line for m in messages for line in (m["content"], *m["content"].split("\n"))}
        assert not banned & lines


def test_the_template_renders_what_the_training_text_renders(
    pair: dict[str, LocalModel],
) -> None:
    """The model reads at run time exactly what it read in training, tools included."""
    rng = Random(4)
    for _ in range(60):
        _, (messages, used) = conversation(rng)
        expected = "".join(text for text, _ in render(messages, used))
        assert expected == pair["small"].tokenizer.apply_chat_template(
            messages, tools=used or None, tokenize=False
        )


def test_calls_are_graded_by_value() -> None:
    """A call passes when it names the tool and its expression has the same value."""
    item = questions(1, 2, "calculator")[0]
    assert item.call is not None
    expression = item.call["arguments"]["expression"]
    for made, right in ((f"({expression})", True), (f"{expression} + 1", False)):
        call = {"name": "calculator", "arguments": {"expression": made}}
        assert right == item.grade(f"<tool_call>\n{json.dumps(call)}\n</tool_call>")
    assert not item.grade("<tool_call>\n{broken}\n</tool_call>")
    assert item.answer == item.run_tool("calculator", item.call["arguments"])


def test_facts_of_one_seed_agree() -> None:
    """All contexts of one seed tell the same world, so they can share one index."""
    known: dict[str, str] = {}
    for item in questions(120, 8, "two_facts"):
        for fact in item.facts:
            head, _, value = fact.rpartition(" is ")
            if head.startswith("The "):
                assert value == known.setdefault(head, value)
    assert known


@pytest.mark.parametrize("text", ["__import__('os')", "2 **", "1 / 0", "a + 1", ""])
def test_the_calculator_refuses_what_is_no_arithmetic(text: str) -> None:
    """Only numbers and the four operations are evaluated."""
    with pytest.raises(ValueError, match="not an arithmetic expression"):
        calculator(text)


def test_the_embedding_ranks_the_fact_that_shares_words() -> None:
    """The fact in the words of the question comes first; vectors have length one."""
    texts = ["The home of Nia is Dover.", "The job of Tom is baker.", "Paris has a tower."]
    query = embed("What is the home of Nia?")
    scores = [sum(a * b for a, b in zip(query, embed(t), strict=True)) for t in texts]
    assert scores[0] == max(scores)
    assert sum(x * x for x in query) == pytest.approx(1.0)
    assert not any(embed(""))


def test_unknown_names_are_refused() -> None:
    """A wrong model or skill name says what was expected."""
    with pytest.raises(ValueError, match="expected 'small' or 'large', received 'huge'"):
        path("huge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="received 'poetry'"):
        questions(1, 1, "poetry")
