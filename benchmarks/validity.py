"""The validity policy against public function-call cases and the JSON Schema Test Suite.

    CASCADELLM_DATA=path/to/data python benchmarks/validity.py

The folder holds `bfcl_v4` and `json_schema_test_suite`; without it the benchmark says so and
ends. Gold calls must pass, planted faults must all be deferred, and on the suite's cases the
policy's verdict must equal that of the reference library `jsonschema`.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator, Draft202012Validator

from cascadellm import Answer, Request, ToolCall
from cascadellm.policies.validity import find_fault, schema_error

RESULTS = Path(__file__).parent / "results" / "validity.json"
PYTHON = ("simple_python", "multiple", "parallel", "parallel_multiple")
LIVE = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
# the cases' own type names, in JSON Schema's words
TYPES = {"dict": "object", "float": "number", "tuple": "array"}
DRAFTS = {
    "draft7": (Draft7Validator, "http://json-schema.org/draft-07/schema#"),
    "draft2020-12": (Draft202012Validator, "https://json-schema.org/draft/2020-12/schema"),
}
WRONG = {"string": 7, "integer": "x", "number": "x", "boolean": "x", "array": 7, "object": 7}


def schema(node: Any) -> Any:
    """Translate a parameter description to JSON Schema; unknown arguments are refused."""
    if not isinstance(node, dict):
        return node
    made = {k: schema(v) if k == "items" else v for k, v in node.items() if k != "optional"}
    kind = made.get("type")
    if kind == "any":
        del made["type"]
    elif isinstance(kind, str):
        made["type"] = TYPES.get(kind, kind)
    if isinstance(made.get("properties"), dict):
        made["properties"] = {k: schema(v) for k, v in made["properties"].items()}
        made["additionalProperties"] = False
    return made


LEFT_OUT = object()


def pick(accepted: list[Any], spec: Any) -> Any:
    """Return the first accepted value that its schema allows, else the first one.

    A call is gold with any accepted value; an empty string means "may be left out".
    """
    options = [value(item, spec) for item in accepted if item not in ("", None)]
    fitting = [item for item in options if schema_error(item, spec) is None]
    if fitting:
        return fitting[0]
    if "" in accepted or None in accepted or not options:
        return LEFT_OUT
    return options[0]


def value(accepted: Any, spec: Any) -> Any:
    """Return one value: nested dicts hold lists of accepted values too."""
    spec = spec if isinstance(spec, dict) else {}
    if isinstance(accepted, dict):
        inner = spec.get("properties", {})
        picked = {k: pick(v, inner.get(k, {})) for k, v in accepted.items() if isinstance(v, list)}
        return {k: v for k, v in picked.items() if v is not LEFT_OUT}
    if isinstance(accepted, list):
        return [value(item, spec.get("items", {})) for item in accepted]
    return accepted


def cases(folder: Path, names: tuple[str, ...]) -> Iterator[tuple[str, Request, list[ToolCall]]]:
    """Yield (category, request, gold calls)."""
    for name in names:
        path = f"BFCL_v4_{name}.json"
        gold = {}
        for line in (folder / "possible_answer" / path).read_text().splitlines():
            row = json.loads(line)
            gold[row["id"]] = row["ground_truth"]
        for line in (folder / path).read_text().splitlines():
            row = json.loads(line)
            tools = tuple(
                {"function": {"name": f["name"], "parameters": schema(f["parameters"])}}
                for f in row["function"]
            )
            calls = []
            for call in gold[row["id"]]:
                ((function, arguments),) = call.items()
                spec = next(t["function"] for t in tools if t["function"]["name"] == function)
                inner = spec["parameters"].get("properties", {})
                made = {k: pick(v, inner.get(k, {})) for k, v in arguments.items()}
                kept = {k: v for k, v in made.items() if v is not LEFT_OUT}
                calls.append(ToolCall(function, kept))
            yield name, Request("", tools=tools, tool_required=True), calls


def faults(request: Request, calls: list[ToolCall]) -> Iterator[tuple[str, list[ToolCall]]]:
    """Plant one fault of each kind that the first call can carry."""
    first, rest = calls[0], calls[1:]
    arguments = dict(first.arguments or {})
    spec = next(t["function"] for t in request.tools if t["function"]["name"] == first.name)
    required = [k for k in spec["parameters"].get("required", ()) if k in arguments]
    yield "renamed function", [ToolCall(first.name + "_", arguments), *rest]
    yield "added argument", [ToolCall(first.name, {**arguments, "not_there": 1}), *rest]
    yield "unparsable arguments", [ToolCall(first.name, None, raw='{"a": '), *rest]
    if required:
        less = {k: v for k, v in arguments.items() if k != required[0]}
        yield "dropped required argument", [ToolCall(first.name, less), *rest]
    for key in arguments:
        kind = spec["parameters"]["properties"].get(key, {}).get("type")
        if kind in WRONG:
            wrong = {**arguments, key: deepcopy(WRONG[kind])}
            yield "wrong type", [ToolCall(first.name, wrong), *rest]
            return


def calls_table(folder: Path) -> dict[str, Any]:
    """Return pass rates of gold calls and catch rates of planted faults."""
    passed, total, caught, planted = Counter(), Counter(), Counter(), Counter()
    reasons: list[str] = []
    for name, request, calls in cases(folder, (*PYTHON, *LIVE)):
        fault = find_fault(request, Answer("", tool_calls=tuple(calls)))
        total[name] += 1
        passed[name] += fault is None
        if fault is not None:
            reasons.append(f"{name}: {fault[1]}"[:160])
            continue
        for kind, broken in faults(request, calls):
            planted[kind] += 1
            caught[kind] += find_fault(request, Answer("", tool_calls=tuple(broken))) is not None
    return {
        "gold_passed": {name: [passed[name], total[name]] for name in total},
        "gold_passed_python": [sum(passed[n] for n in PYTHON), sum(total[n] for n in PYTHON)],
        "gold_passed_all": [sum(passed.values()), sum(total.values())],
        "faults_caught": {kind: [caught[kind], planted[kind]] for kind in planted},
        "gold_refused": reasons,
    }


def suite_table(folder: Path) -> dict[str, Any]:
    """Return agreement with the reference library, and what is left out and why."""
    result: dict[str, Any] = {}
    for draft, (reference, dialect) in DRAFTS.items():
        agreed, asked, left, differ = 0, 0, Counter(), []
        for path in sorted((folder / "tests" / draft).rglob("*.json")):
            for group in json.loads(path.read_text()):
                why = left_out(group["schema"], path)
                if why is not None:
                    left[why] += len(group["tests"])
                    continue
                full = {"$schema": dialect, **group["schema"]}
                for test in group["tests"]:
                    try:
                        theirs = reference(full).is_valid(test["data"])
                    except Exception as error:
                        left[f"the reference library itself raises {type(error).__name__}"] += 1
                        continue
                    ours = find_fault(
                        Request("", response_schema=full), Answer(json.dumps(test["data"]))
                    )
                    asked += 1
                    agreed += (ours is None) == theirs
                    if (ours is None) != theirs:
                        differ.append(f"{path.name}: {group['description']}: {test['description']}")
        result[draft] = {
            "agreed": [agreed, asked],
            "left_out": dict(sorted(left.items())),
            "differ": differ,
        }
    return result


def left_out(schema: Any, path: Path) -> str | None:
    """Say why the frameworks cannot express a case, None if they can."""
    if not isinstance(schema, dict):
        return "the schema is a bare boolean: a response schema is an object in both frameworks"
    text = json.dumps(schema)
    if "localhost:1234" in text or "://" in text.replace(str(schema.get("$schema", "")), ""):
        return "the schema refers to documents outside itself, which are never fetched"
    if schema.get("$schema", "") not in ("", *(dialect for _, dialect in DRAFTS.values())):
        return "the schema names another dialect"
    if path.stem == "cross-draft":
        return "the case mixes dialects"
    return None


def main() -> int:
    """Run both halves, print the table, write the results."""
    root = os.environ.get("CASCADELLM_DATA", "")
    if not root or not (Path(root) / "bfcl_v4").is_dir():
        print("skipped: set CASCADELLM_DATA to a folder with bfcl_v4/ and json_schema_test_suite/")
        return 0
    found = {
        "calls": calls_table(Path(root) / "bfcl_v4"),
        "suite": suite_table(Path(root) / "json_schema_test_suite"),
        "versions": {"python": platform.python_version(), "jsonschema": version("jsonschema")},
    }
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    calls = found["calls"]
    passed = f"{calls['gold_passed_python']} python, {calls['gold_passed_all']} all"
    print(f"gold calls passed: {passed}")
    for kind, (caught, planted) in calls["faults_caught"].items():
        print(f"  {kind}: {caught} of {planted} deferred")
    for draft, row in found["suite"].items():
        print(f"{draft}: {row['agreed'][0]} of {row['agreed'][1]} verdicts agree")
        for why, count in row["left_out"].items():
            print(f"  left out, {count} cases: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
