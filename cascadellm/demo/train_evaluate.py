"""Measure the demo models on held-out questions, greedy, as a table per skill and step count."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cascadellm.demo import tasks
from cascadellm.demo import train_layouts as lay
from cascadellm.demo.question import Question

Cell = tuple[str, list[Question], str]


class Subject:
    """A demo model under measurement.

    Args:
        folder: Its folder.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.parameters = sum(p.numel() for p in self.model.parameters())

    @torch.no_grad()
    def answer(
        self, chats: Sequence[list[dict[str, Any]]], tools: Sequence[Sequence[Any]]
    ) -> list[str]:
        """Answer chats greedily, in padded batches of similar length."""
        texts = [
            self.tokenizer.apply_chat_template(
                chat, tools=list(used) or None, add_generation_prompt=True, tokenize=False
            )
            for chat, used in zip(chats, tools, strict=True)
        ]
        made = [""] * len(texts)
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        for start in range(0, len(order), 50):
            part = order[start : start + 50]
            inputs = self.tokenizer([texts[at] for at in part], return_tensors="pt", padding=True)
            inputs.pop("token_type_ids", None)
            out = self.model.generate(**inputs, max_new_tokens=96, do_sample=False)
            for at, row in zip(part, out[:, inputs["input_ids"].shape[1] :], strict=True):
                made[at] = self.tokenizer.decode(row, skip_special_tokens=True)
        return made

    def grade(self, items: Sequence[Question], layout: str = "plain") -> float:
        """Share of questions answered right; tools are run and their results fed back."""
        chats = [_chat(item, layout) for item in items]
        used = [item.tools for item in items]
        texts = self.answer(chats, used)
        calling = [at for at, item in enumerate(items) if item.call and item.grade(texts[at])]
        if any(item.call for item in items):
            for at in calling:
                call = items[at].call or {}
                result = items[at].run_tool(call["name"], call["arguments"])
                chats[at] += [lay.assistant("", call), lay.tool_result(result)]
            after = self.answer([chats[at] for at in calling], [used[at] for at in calling])
            right = sum(
                "<tool_call>" not in text and items[at].grade(text)
                for at, text in zip(calling, after, strict=True)
            )
            return right / len(items)
        return sum(item.grade(text) for item, text in zip(items, texts, strict=True)) / len(items)


def _chat(item: Question, layout: str) -> list[dict[str, Any]]:
    found = "\n\n".join(item.facts)
    if layout == "text-QA":
        body = lay.QA.format(context=found, query=item.query)
        return [lay.system_message(lay.QA_SYSTEM), lay.user(body)]
    if layout == "refine":
        answer = "The context does not hold the answer."
        return [lay.user(lay.REFINE.format(context=found, query=item.query, answer=answer))]
    if layout == "chat engine":
        return [lay.system_message(lay.CHAT_SYSTEMS[0].format(context=found)), lay.user(item.query)]
    return [lay.user(item.question)]


def cells(each: int, seed: int) -> Iterator[Cell]:
    """The rows of the table: label, questions, layout."""
    for steps in (1, 2, 3, 4):
        label = f"word problem, {steps} step{'s' if steps > 1 else ''}"
        yield label, tasks.questions(each, seed, "word_problem", steps=steps), "plain"
    for skill in ("one_fact", "two_facts", "not_in_context"):
        items = tasks.questions(each, seed, skill)
        for layout in ("plain", "text-QA", "refine", "chat engine"):
            yield f"{skill.replace('_', ' ')}, {layout} prompt", items, layout
        if skill != "not_in_context":
            for form in sorted({item.form for item in items}):
                same = [item for item in items if item.form == form]
                yield f"{skill.replace('_', ' ')}, form: {form}", same, "plain"
    for skill in ("calculator", "lookup"):
        yield f"{skill}: call and answer", tasks.questions(each, seed, skill), "plain"
    judged = tasks.questions(each, seed, "judge")
    for form in ("solve first", "verdict only"):
        yield f"judge, {form}", [item for item in judged if item.form == form], "plain"
    yield "json object", tasks.questions(each, seed, "json"), "plain"


def table(folders: dict[str, Path], each: int = 200, seed: int = 77) -> tuple[str, str]:
    """Measure models side by side.

    Args:
        folders: Folder of each model by name.
        each: Questions per row; rows by form share them.
        seed: Seed of the questions.
    Returns: The table as Markdown, and as JSON.
    """
    subjects = {name: Subject(folder) for name, folder in folders.items()}
    lines = [
        "| skill | n | " + " | ".join(subjects) + " |",
        "|---|---|" + "---|" * len(subjects),
    ]
    data: list[dict[str, Any]] = []
    for label, items, layout in cells(each, seed):
        got = {name: one.grade(items, layout) for name, one in subjects.items()}
        shown = " | ".join(f"{share:.1%}" for share in got.values())
        lines.append(f"| {label} | {len(items)} | {shown} |")
        data.append({"skill": label, "n": len(items), **got})
    sizes = ", ".join(f"{name} {one.parameters:,}" for name, one in subjects.items())
    return "\n".join([*lines, "", f"Parameters: {sizes}."]), json.dumps(data, indent=1)
