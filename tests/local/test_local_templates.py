"""Tools in the published templates of Llama 3, Mistral, Qwen and Hermes, there and back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from cascadellm.answer import Request
from cascadellm.errors import ModelError
from cascadellm.local import LocalModel
from cascadellm.local.families import sections_for
from cascadellm.policies.validity import find_fault
from tests.local.family_templates import TEMPLATES
from tests.local.tiny_models import CALCULATOR, tiny_llama

LOOKUP = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "Look a word up.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"enum": ["rain", "snow"]}, "times": {"type": "boolean"}},
            "required": ["word", "times"],
        },
    },
}
TOOLS = [CALCULATOR, LOOKUP]
# what stands before and after the assistant's turn with calls
TURNS = {
    "llama-3.1": (r"assistant<\|end_header_id\|>\n\n", r"<\|eot_id\|>"),
    "mistral-v3": (r"(?=\[TOOL_CALLS\])", r"<\|im_end\|>"),
    "mistral-v7": (r"(?=\[TOOL_CALLS\])", r"<\|im_end\|>"),
    "mistral-v11": (r"\[/INST\](?=One.\[TOOL_CALLS\])", r"<\|im_end\|>"),
    "qwen-3": (r"<\|im_start\|>assistant\n(?=One)", r"<\|im_end\|>"),
    "hermes-3": (r"<\|im_start\|>assistant\n(?=<tool_call>)", r"<\|im_end\|>"),
}


def _call(name: str, arguments: Any, call_id: str) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": call_id, "type": "function", "function": function}


def _history(ids: tuple[str, str] = ("call_1234567890abcdef", "toolu_01A")) -> list[dict[str, Any]]:
    """Return two calls at once with their results in the other order."""
    first, second = _call("calc", {"x": "2+3"}, ids[0]), _call("lookup", {"word": "rain"}, ids[1])
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Go."},
        {"role": "assistant", "content": "One.", "tool_calls": [first, second]},
        {"role": "tool", "tool_call_id": ids[1], "content": "wet"},
        {"role": "tool", "tool_call_id": ids[0], "content": "5"},
        {"role": "assistant", "content": "Five, wet."},
        {"role": "user", "content": "Thanks."},
    ]


@pytest.fixture(scope="module", params=TEMPLATES)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, LocalModel]]:
    """A random model behind one published template."""
    words = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|eot_id|>")
    path = tiny_llama(tmp_path_factory.mktemp("family"), window=4096, extra=words)
    options = {"chat_template": TEMPLATES[request.param]}
    with LocalModel(path, chat_template_kwargs=options, max_new_tokens=250) as model:
        yield request.param, model


def _written(name: str, text: str) -> list[str]:
    """Return what the template wrote as the assistant's turns with calls."""
    before, after = TURNS[name]
    return re.findall(f"{before}(.*?){after}", text, flags=re.DOTALL)


def test_tools_calls_and_results_are_rendered(family: tuple[str, LocalModel]) -> None:
    """Tools, parallel calls and their results stand in the prompt, in an order that fits."""
    name, model = family
    text = model.prompt(_history(), TOOLS).text
    for part in ("Look a word up.", "2+3", "rain", "wet", "Five, wet.", "Thanks."):
        assert part in text
    assert text.index("2+3") < text.rindex('5"' if name == "llama-3.1" else "5")
    if name == "llama-3.1":
        # one call in a turn, each followed by its own result
        order = [text.index(part) for part in ('{"x": "2+3"}', '"5"', '{"word": "rain"}', '"wet"')]
        assert sorted(order) == order


def test_what_a_template_writes_is_read_back(family: tuple[str, LocalModel]) -> None:
    """The turn that a template renders for calls is split into the same calls."""
    name, model = family
    template = TEMPLATES[name]
    turns = _written(name, model.prompt(_history(), TOOLS).text)
    calls = []
    for turn in turns[: 2 if name == "llama-3.1" else 1]:
        sections = sections_for(template, None, "", TOOLS, thinking=False)
        sections.feed(turn)
        sections.finish()
        calls += sections.calls
    assert [("calc", {"x": "2+3"}), ("lookup", {"word": "rain"})] == [
        (call.name, call.arguments) for call in calls
    ]


def test_mistral_identifiers_match_between_call_and_result(
    family: tuple[str, LocalModel],
) -> None:
    """Nine letters and digits, the same in call and result, also where none was given."""
    name, model = family
    if not name.startswith("mistral"):
        return
    for ids in (("call_1234567890abcdef", "toolu_01A"), ("", ""), ("abcdefghi", "Z23456789")):
        history = _history(ids)
        if not ids[0]:
            history[3], history[4] = history[4], history[3]
        text = model.prompt(history, TOOLS).text
        call = r'"id": "(\w+)"' if name != "mistral-v11" else r"\[CALL_ID\](\w+)"
        result = r'"call_id": "(\w+)"' if name != "mistral-v11" else r"\[TOOL_RESULTS\](\w+)"
        made, answered = re.findall(call, text), re.findall(result, text)
        assert 2 == len(set(made))
        assert all(len(one) == 9 and one.isalnum() for one in made)
        assert (made if not ids[0] else made[::-1]) == answered


def test_conversations_of_other_shapes_are_accepted(family: tuple[str, LocalModel]) -> None:
    """Two turns of one role and late instructions reach every family, nothing lost."""
    _, model = family
    turns = [
        {"role": "user", "content": "One."},
        {"role": "user", "content": "Two."},
        {"role": "assistant", "content": "Three."},
        {"role": "system", "content": "Four."},
        {"role": "user", "content": "Five."},
    ]
    text = model.prompt(turns).text
    order = [text.index(part) for part in ("One.", "Two.", "Three.", "Four.", "Five.")]
    assert sorted(order) == order


def test_own_reasoning_reaches_templates_that_read_it(family: tuple[str, LocalModel]) -> None:
    """Qwen 3 reads the reasoning of the turn that it is still in; others leave it out."""
    name, model = family
    turns = _history()[:5]
    turns[2] = {**turns[2], "reasoning_content": "hm, so"}
    text = model.prompt(turns, TOOLS).text
    assert ("<think>\nhm, so\n</think>" in text) == (name == "qwen-3")
    assert ("hm, so" in text) == (name == "qwen-3")


def test_a_template_still_refuses_what_it_cannot_say(family: tuple[str, LocalModel]) -> None:
    """A conversation that begins with an answer is refused by Mistral with the roles named."""
    name, model = family
    turns = [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Hi."}]
    if name.startswith("mistral"):
        with pytest.raises(ModelError, match=r"roles: assistant, user\): conversation roles must"):
            model.prompt(turns)
    else:
        assert "Hello." in model.prompt(turns).text


def test_a_call_goes_round(family: tuple[str, LocalModel]) -> None:
    """A call is written, streamed and not, answered by a tool, and stands in the next prompt."""
    pytest.importorskip("xgrammar")
    _, model = family
    options: dict[str, Any] = {"tools": [LOOKUP], "constrain_tools": "one"}
    answer = model.generate("Go.", **options)
    assert answer == list(model.stream("Go.", **options))[-1].answer
    request = Request(native=None, tools=(LOOKUP,), tool_required=True)
    assert find_fault(request, answer) is None
    (call,) = answer.tool_calls
    turns = [
        {"role": "user", "content": "Go."},
        {
            "role": "assistant",
            "content": answer.text,
            "tool_calls": [_call(call.name, call.arguments, call.id or "call_1")],
        },
        {"role": "tool", "tool_call_id": call.id or "call_1", "content": "wet"},
    ]
    text = model.prompt(turns, [LOOKUP]).text
    assert json.dumps(dict(call.arguments or {})) in text
    assert "wet" in text
    assert model.generate(turns, tools=[LOOKUP], max_new_tokens=5).usage
