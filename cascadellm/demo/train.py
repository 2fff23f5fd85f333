"""Train the two demo models from scratch, and measure them.

    python -m cascadellm.demo.train --model large --minutes 90
    python -m cascadellm.demo.train --model large --export
    python -m cascadellm.demo.train --evaluate

The text is generated as training goes, from a seed; a stopped run goes on from its checkpoint. The
package never imports this module: it needs the extra `local` and writes to the terminal. With
glibc, MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_=20000000000 in the environment make it several
times as fast on a CPU, because freed activations then stay with the process.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from cascadellm.demo import tasks
from cascadellm.demo.question import Question
from cascadellm.demo.train_batches import Batch, Writer, batch, batches
from cascadellm.demo.train_evaluate import table
from cascadellm.demo.train_model import Model, Size, export
from cascadellm.demo.train_text import LONG_MIXTURE, MIXTURE, SHORT_MIXTURE, render
from cascadellm.demo.train_tokenizer import build

SIZES = {"small": Size(2, 96, 256), "large": Size(4, 192, 512)}
RATES = {"small": 3e-3, "large": 2e-3}
HERE = Path(__file__).parent
CHECKPOINTS = Path.home() / ".cache" / "cascadellm" / "demo_train"


class Run:
    """One training run and its checkpoint.

    Args:
        name: "small" or "large".
        folder: Where checkpoints go.
        minutes: Planned training time, over all resumptions.
        seed: Seed of weights and text.
    """

    def __init__(self, name: str, folder: Path, minutes: float, seed: int) -> None:
        self.name, self.minutes, self.seed = name, minutes, seed
        self.path = folder / f"{name}.pt"
        self.writer = Writer(folder / "tokenizer")
        torch.manual_seed(seed)
        self.model = Model(SIZES[name])
        weight = self.model.model.embed_tokens.weight
        shift = 0.4 * F.normalize(torch.randn(weight.shape[1]), dim=0)
        # One direction tells a word after a space from the same word without it, so that copying
        # across the two is one thing to learn and not one per word.
        with torch.no_grad():
            for plain, spaced in self.writer.pairs():
                word, other = weight[plain].clone(), weight[spaced].clone()
                weight[plain] = 0.9 * word - shift - 0.1 * other
                weight[spaced] = 0.9 * word + shift + 0.1 * other
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
            lr=RATES[name],
            betas=(0.9, 0.98),
            fused=True,
        )
        self.step, self.part, self.tokens, self.spent_s = 0, 0, 0, 0.0
        self.recalling = True
        if self.path.exists():
            self._load()
        torch.compiler.config.recompile_limit = 64
        for layer in self.model.model.layers:
            layer.compile(dynamic=False)

    def _load(self) -> None:
        saved = torch.load(self.path)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for key in ("step", "part", "tokens", "spent_s", "recalling"):
            setattr(self, key, saved[key])

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state: dict[str, Any] = {
            key: getattr(self, key) for key in ("step", "part", "tokens", "spent_s", "recalling")
        }
        state |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, self.path.with_suffix(".new"))
        self.path.with_suffix(".new").replace(self.path)

    @property
    def done(self) -> float:
        """Share of the planned time that is spent, 0 to 1."""
        return min(1.0, self.spent_s / (60 * self.minutes))

    def text(self) -> Iterator[Batch]:
        """The endless training text; recall alone at first, then a share of it."""
        while True:
            mixture = MIXTURE if self.done < 0.9 else LONG_MIXTURE
            mixture = SHORT_MIXTURE if self.name == "small" else mixture
            share = 1.0 if self.recalling else 0.12 * (1 - self.done)
            ease = max(0.0, 1 - self.step / 300)
            self.part += 1
            yield from batches(self.writer, self.seed, self.part, share, ease, mixture)

    def rate(self) -> float:
        """Learning rate: warm-up, a cosine over the planned time, and a straight end."""
        warm = min(1.0, (self.step + 1) / 60)
        cosine = (1 + math.cos(math.pi * self.done)) / 2
        closing = min(1.0, (1 - self.done) / 0.1)
        return RATES[self.name] * warm * (0.88 * cosine + 0.12 * closing)

    def update(self, stream: Iterator[Batch], accumulate: int) -> tuple[float, float]:
        """Take one optimizer step: mean loss and share of tokens predicted right."""
        total, right, count = 0.0, 0, 0
        for ids, at, target in itertools.islice(stream, accumulate):
            with torch.autocast("cpu", torch.bfloat16):
                logits = self.model(ids, at)
            loss = F.cross_entropy(logits.float(), target, reduction="sum")
            torch.autograd.backward(loss / 500 / accumulate)
            total, count = total + loss.item(), count + len(target)
            right += int((logits.argmax(-1) == target).sum())
            self.tokens += ids.numel()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return total / count, right / count

    @torch.no_grad()
    def measure(self, each: int = 40) -> str:
        """Share of held-out questions whose model answer is predicted token for token."""
        found = []
        for label, items in _samples(each):
            rows = [self.writer.row(_segments(item)) for item in items]
            rows.sort(key=lambda row: len(row[0]))
            right = 0
            for start in range(0, len(rows), 10):
                part = rows[start : start + 10]
                length = -(-len(part[-1][0]) // 64) * 64
                ids, at, target = batch(part, length)
                stance = torch.compiler.set_stance("force_eager")
                with stance, torch.autocast("cpu", torch.bfloat16):
                    bad = self.model(ids, at).argmax(-1) != target
                right += len(part) - len(set((at[bad] // length).tolist()))
            found.append(f"{label} {right / len(rows):.0%}")
        return " · ".join(found)


def _segments(item: Question) -> list[tuple[str, bool]]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": item.question}]
    if item.call:
        call = {"type": "function", "function": item.call}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        result = item.run_tool(item.call["name"], item.call["arguments"])
        messages.append({"role": "tool", "content": result})
    messages.append({"role": "assistant", "content": item.solution})
    return render(messages, list(item.tools))


def _samples(each: int) -> Iterator[tuple[str, list[Question]]]:
    for steps in (1, 2, 3, 4):
        yield f"word{steps}", tasks.questions(each, 11, "word_problem", steps=steps)
    for skill in ("one_fact", "two_facts"):
        grouped: dict[str, list[Question]] = {}
        for item in tasks.questions(3 * each, 11, skill):
            grouped.setdefault(item.form, []).append(item)
        for form, items in sorted(grouped.items()):
            yield f"{skill}/{form}", items[:each]
    for skill in tasks.SKILLS[3:]:
        yield skill, tasks.questions(each, 11, skill)


def train(run: Run, every_s: float) -> None:
    """Train until the planned time is spent."""
    stream = run.text()
    began = run.spent_s
    start = shown = time.monotonic()
    loss_mean, right_mean, tokens = 0.0, 0.0, run.tokens
    while run.done < 1:
        loss, right = run.update(stream, 3 if run.done < 0.75 else 6)
        keep = 0.9 if run.step > 10 else 0.0
        loss_mean, right_mean = (
            keep * loss_mean + (1 - keep) * loss,
            keep * right_mean + (1 - keep) * right,
        )
        now = time.monotonic()
        run.spent_s = began + now - start
        if run.recalling and ((right_mean > 0.8 and run.step > 150) or run.done > 0.15):
            run.recalling = False
            print(f"{run.name}: recall holds at step {run.step}", flush=True)
        if run.step % 25 == 0:
            speed = (run.tokens - tokens) / (now - start)
            left = 60 * run.minutes - run.spent_s
            print(
                f"{run.name} {run.done:4.0%} step {run.step} loss {loss_mean:.3f} "
                f"right {right_mean:.3f} {speed:.0f} tokens/s, {left / 60:.0f} min left",
                flush=True,
            )
        if now - shown > every_s:
            shown = now
            run.save()
            print(f"{run.name} {run.spent_s / 60:.0f} min: {run.measure()}", flush=True)
    run.save()
    print(f"{run.name} done: {run.measure(100)}", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train or measure the demo models.")
    parser.add_argument("--model", choices=("small", "large"))
    parser.add_argument("--minutes", type=float, default=90.0)
    parser.add_argument("--folder", type=Path, default=CHECKPOINTS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report-every", type=float, default=240.0, help="seconds")
    parser.add_argument("--export", action="store_true", help="write the checkpoint's weights")
    parser.add_argument("--evaluate", action="store_true", help="print the accuracy table")
    parser.add_argument("--each", type=int, default=200, help="questions per row of the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.evaluate:
        print(table({name: HERE / name for name in SIZES}, options.each)[0])
        return
    tokenizer = options.folder / "tokenizer"
    if not (tokenizer / "tokenizer.json").exists():
        build(tokenizer, 2048)
    if options.model:
        run = Run(options.model, options.folder, options.minutes, options.seed)
        if options.export:
            export(run.model, HERE / options.model)
            (HERE / options.model / "model.safetensors").chmod(0o644)
            shutil.copytree(tokenizer, HERE / options.model, dirs_exist_ok=True)
        else:
            train(run, options.report_every)


if __name__ == "__main__":
    main()
