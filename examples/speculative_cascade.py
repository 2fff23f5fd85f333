"""Two local models answer together, token by token; the terminal shows who wrote what.

The small model drafts, the large one checks several tokens in one call, and a deferral rule
decides per token. Runs on the demo models, without a key or a network.
"""

from __future__ import annotations

from rich.console import Console

from cascadellm import demo
from cascadellm.local import SpeculativeCascade, SpeculativePair
from cascadellm.local.rules import Lossless, TokenV3
from cascadellm.report.provenance import answer_text
from langchain_cascade import CascadeLLM


def main() -> None:
    """Answer three questions with two rules, then the same inside LangChain."""
    console = Console()
    small, large = demo.load("small"), demo.load("large")
    for rule in (Lossless(), TokenV3(alpha=0.3)):
        pair = SpeculativePair(small, large, rule, gamma=4, names=("small", "large"))
        console.rule(f"{rule}: [blue]small[/blue] and [dark_orange]large[/dark_orange]")
        for question in demo.questions(3, seed=5):
            answer = pair.generate(question.question)
            spoken, tokens = answer.speculation or {}, answer.usage
            console.print(question.question, style="dim")
            console.print(answer_text(answer))
            console.print(
                f"{tokens.output_tokens if tokens else 0} tokens, {spoken['accepted']} drafted by "
                f"the small model, {spoken['verify_calls']} calls of the large one\n"
            )

    # the same as the policy of a boundary: nothing else in the cascade changes
    llm = CascadeLLM(tiers=[small, large], policy=SpeculativeCascade(TokenV3(alpha=0.3), gamma=4))
    record = llm.invoke(demo.questions(1, seed=6)[0].question).response_metadata["cascade"]
    console.print(record["answered_by"], record["spans"])


if __name__ == "__main__":
    main()
