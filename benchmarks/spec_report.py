"""What the studies of speculative cascades print, draw and write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
RESULTS = Path(__file__).parent / "results"


def save(name: str, data: dict[str, Any]) -> None:
    """Write the result file and its picture."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    plot(RESULTS / f"{name}.png", data["studies"])


LOOKS = (
    ("large alone (generate)", "large alone (generate)", "black", "s"),
    ("large alone (LocalModel)", "large alone (LocalModel)", "tab:gray", "s"),
    ("small alone", "small alone (LocalModel)", "tab:gray", "v"),
    ("transformers assisted", "transformers, assisted", "tab:red", "D"),
    ("transformers ensemble", "transformers, ensemble weights", "tab:pink", "d"),
    ("answer-level", "answer-level cascade", "tab:purple", "o"),
    ("sequential", "sequential token cascade", "tab:brown", "P"),
    ("lossless, adaptive", "lossless, adaptive gamma", "darkgreen", "*"),
    ("lossless, blocks", "lossless, whole blocks", "teal", "X"),
    ("lossless", "lossless, fixed gamma", "navy", "*"),
    ("min-p", "min-p = 1 - alpha, lossless", "tab:orange", "x"),
)
"""Start of a family's name, its label, colour and marker; the rest are rules."""


def look(family: str) -> tuple[str, str, str]:
    """Return a family's label, colour and marker; all rules of one kind of gamma share theirs."""
    for start, label, color, marker in LOOKS:
        if family.startswith(start):
            return label, color, marker
    if family.endswith("adaptive gamma"):
        return "rules over alpha, adaptive gamma", "limegreen", "o"
    return "rules over alpha, fixed gamma", "cornflowerblue", "o"


def plot(path: Path, studies: dict[str, Any]) -> None:
    """Draw quality against relative latency, one panel per study."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(studies), figsize=(5.6 * len(studies), 5), squeeze=False)
    for axis, (title, data) in zip(axes[0], studies.items(), strict=True):
        families: dict[str, list[dict[str, Any]]] = {}
        for row in data["rows"]:
            families.setdefault(row["family"], []).append(row)
        for family, rows in families.items():
            ordered = sorted(rows, key=lambda r: r["latency"])
            label, color, marker = look(family)
            taken = axis.get_legend_handles_labels()[1]
            axis.plot(
                [r["latency"] for r in ordered], [100 * r["quality"] for r in ordered],
                marker=marker, ms=4 if len(rows) > 1 else 10, lw=1, color=color, alpha=0.85,
                label="_" if label in taken else label,
            )  # fmt: skip
        axis.axvline(1, color="grey", lw=0.7, ls=":")
        axis.set(title=title, xlabel="latency relative to the large model's generate")
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("exact answers, %")
    found: dict[str, Any] = {}
    for axis in axes[0]:
        found |= {k: v for v, k in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="lower center", ncols=4, fontsize=8)
    figure.tight_layout(rect=(0, 0.17, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def show(title: str, data: dict[str, Any]) -> None:
    """Print a study."""
    print(f"\n{title}: {data['test_prompts']} prompts, parameters chosen on other prompts")
    for row in data["rows"]:
        calls = row.get("tokens_per_verify_call")
        extra = f"  {calls:.2f} tokens per verify call" if calls else ""
        numbers = f"quality {row['quality']:.3f}  speed-up {row['speedup']:.2f}"
        print(f"  {row['method']:<34} {numbers}{extra}")
    for family, one in data["chosen_on_dev"].items():
        best = one["matched_quality"]
        if best:
            print(
                f"  at matched quality: {best['method']:<24} speed-up {best['speedup']:.2f}, "
                f"quality {best['quality']:.3f}, area {one['area']:.3f}"
            )
        else:
            print(f"  at matched quality: {family:<24} none, area {one['area']:.3f}")
