"""Chat messages to prompts: what frameworks send becomes what templates read, or an error."""

from __future__ import annotations

from typing import Any

import pytest

from cascadellm.errors import ConfigurationError, ContextWindowError, ModelError
from cascadellm.local import LocalModel
from cascadellm.local.chat import check_room, normalise, plain_text, render
from tests.local.tiny_models import CALCULATOR, tiny_llama, tiny_tokenizer

HISTORY = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is "}, "2+3?"]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "calc", "arguments": '{"x": "2+3"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "5"},
]


def test_openai_messages_become_template_messages() -> None:
    """Roles, text blocks, string arguments and missing content are brought to one form."""
    system, user, assistant, tool = normalise(HISTORY)
    assert {"role": "system", "content": "Be brief."} == system
    assert {"role": "user", "content": "What is 2+3?"} == user
    assert "" == assistant["content"]
    assert {"name": "calc", "arguments": {"x": "2+3"}} == assistant["tool_calls"][0]["function"]
    assert ("tool", "c1") == (tool["role"], tool["tool_call_id"])


def test_a_malformed_call_in_the_history_stays_as_written() -> None:
    """Arguments that are no JSON reach the template as the text that the model wrote."""
    call = {"function": {"name": "calc", "arguments": "{bad"}}
    (message,) = normalise([{"role": "assistant", "content": "", "tool_calls": [call]}])
    assert "{bad" == message["tool_calls"][0]["function"]["arguments"]


def test_a_rendered_history_shows_call_result_and_tools() -> None:
    """The template sees arguments as an object and every tool."""
    text = render(tiny_tokenizer(), HISTORY, [CALCULATOR], {}, "tiny")
    assert '{"name": "calc", "arguments": {"x": "2+3"}}' in text
    assert "<tool_response>\n5\n</tool_response>" in text
    assert '"Evaluate an expression."' in text
    assert text.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ({"role": "user", "content": "x"}, "list of dicts"),
        (3, "got int"),
        ([], "at least one message"),
        (["hi"], "message 0 must be a dict with a 'role'"),
        ([{"content": "x"}], "'role'"),
        ([{"role": "user", "content": 3}], "content of message 0"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "'image_url' block"),
        ([{"role": "assistant", "tool_calls": [{"name": 3}]}], "tool call of message 0"),
    ],
)
def test_malformed_messages_are_named(messages: Any, match: str) -> None:
    """The error says which message is wrong and what was expected."""
    with pytest.raises(ConfigurationError, match=match):
        normalise(messages)


def test_plain_text_joins_contents() -> None:
    """Models that are no chat models read the contents, one per line."""
    assert "Be brief.\nWhat is 2+3?\n5" == plain_text(HISTORY)
    assert "as it is" == plain_text("as it is")


def test_a_model_without_template_refuses_chat_but_reads_text(tmp_path: Any) -> None:
    """Chat messages need a template; a plain string does not."""
    with LocalModel(tiny_llama(tmp_path / "plain", chat=False), max_new_tokens=3) as model:
        with pytest.raises(ModelError, match=r"plain has no chat template.*plain string"):
            model.generate([{"role": "user", "content": "hi"}])
        answer = model.generate("hi")
        assert answer.usage is not None
        assert (2, 3) == (answer.usage.input_tokens, answer.usage.output_tokens)
        with pytest.raises(ConfigurationError, match="prompt for plain is empty"):
            model.generate("")


def test_a_template_given_by_the_caller_is_used(tmp_path: Any) -> None:
    """chat_template_kwargs can carry the template that the tokenizer lacks."""
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    path = tiny_llama(tmp_path / "plain", chat=False)
    with LocalModel(path, chat_template_kwargs={"chat_template": template}) as model:
        assert "[hi]" == model.prompt([{"role": "user", "content": "hi"}]).text


def test_a_string_is_one_user_message_for_a_chat_model(llama: LocalModel) -> None:
    """Asking a chat model a plain question asks it as a user would."""
    chat = [{"role": "user", "content": "hi"}]
    assert llama.encode(chat).tolist() == llama.encode("hi").tolist()


def test_a_template_that_refuses_is_explained(tmp_path: Any) -> None:
    """What a template raises is passed on with the roles that it saw."""
    template = "{{ raise_exception('roles must alternate') }}"
    path = tiny_llama(tmp_path / "strict", chat=False)
    with (
        LocalModel(path, chat_template_kwargs={"chat_template": template}) as model,
        pytest.raises(ModelError, match=r"roles: user\): roles must alternate"),
    ):
        model.generate("hi")


def test_tools_that_a_template_drops_are_refused(tmp_path: Any) -> None:
    """A template without tools is an error, since the model would never see them."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    path = tiny_llama(tmp_path / "toolless", chat=False)
    with LocalModel(path, chat_template_kwargs={"chat_template": template}) as model:
        with pytest.raises(ModelError, match="does not show tool 'calc'"):
            model.generate("hi", tools=[CALCULATOR])
        with pytest.raises(ConfigurationError, match="a tool must be a dict in OpenAI form"):
            model.generate("hi", tools=[{"type": "function"}])


@pytest.mark.parametrize(
    ("length", "new", "shared", "fits"),
    [
        (60, 4, True, True),
        (61, 4, True, False),
        (63, None, True, True),
        (64, None, True, False),
        (64, 4, False, True),
        (65, 4, False, False),
    ],
)
def test_room_is_checked_to_the_token(
    length: int, new: int | None, shared: bool, fits: bool
) -> None:
    """Prompt and answer share the window of a decoder-only model; an encoder has its own."""
    if fits:
        check_room("tiny", length, new, 64, shared=shared)
        return
    with pytest.raises(ContextWindowError, match=f"tiny reads at most 64 tokens.*has {length}"):
        check_room("tiny", length, new, 64, shared=shared)


def test_a_prompt_that_leaves_no_room_names_the_way_out(tmp_path: Any) -> None:
    """The error names the window, the prompt's length and the largest max_new_tokens."""
    with LocalModel(tiny_llama(tmp_path / "short", window=64), max_new_tokens=40) as model:
        assert 64 == model.context_window
        with pytest.raises(ContextWindowError, match=r"has 44 and up to 40.*at most 20"):
            model.generate("x" * 25)
        full = model.generate("x" * 25, max_new_tokens=20)
        assert full.usage is not None
        assert 64 == full.usage.total_tokens
    with LocalModel(tiny_llama(tmp_path / "short", window=64), max_new_tokens=None) as model:
        assert full.text == model.generate("x" * 25).text
