"""Writes docs/spec.md, the page about every key of a job spec, from the model in config.py.

python -m tools.spec_page
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mnist_ray.config import OPERATIONAL_KEYS, JobSpec

PAGE = Path(__file__).parents[1] / "docs" / "spec.md"

INTRODUCTION = """\
# The job spec

<!-- Written by `python -m tools.spec_page` from mnist_ray/config.py; change the texts there. -->

A job spec is a YAML file that describes a whole job. Only `data.name` is required:

```yaml
data: {name: mnist}
search: {num_trials: 50}
```

- `mnist-ray specs` lists the specs that come with the package. `mnist-ray specs mnist > my.yaml` writes one to edit.
- `--set search.num_trials=50` changes a key for one command. The part after `=` is YAML, as in
  `--set 'retrain.seeds=[0, 1]'`.
- A wrong key, type or value is refused before anything starts, with the key and what to write instead.
- `mnist-ray specs --schema > spec.schema.json` writes a JSON schema. Editors that know it explain keys as you type, if
  the file begins with `# yaml-language-server: $schema=spec.schema.json`.
"""

EARLY_STOPPING = """\
With the defaults and `num_epochs: 20`, the rungs are the epochs 1, 4 and 16. A trial that reaches a rung is compared
with all trials that have reached it so far, and goes on if it is among the best quarter of them, or among the best
`final.top_k`. Trials do not wait for each other: each is judged as soon as it reaches a rung, and the first ones always
go on. The fixed trials are never stopped. A stopped trial is listed as `pruned`, with its reason. `mnist-ray plan`
prints the rungs of a spec, and [decision 0018](decisions/0018-early-stopping.md) gives the reasons for this rule.
"""

CONCURRENCY = """\
## How much runs at a time

Nothing has to be set: by default as much runs at a time as the cluster has room for.

- **Trials.** Each reserves `search.cpus_per_trial` CPUs and `search.gpus_per_trial` of a GPU. On 8 CPUs with 2 CPUs a
  trial, four run at a time; `search.max_concurrent_trials` lowers that number. The final round uses the same settings.
- **Retrainings.** Each takes `retrain.workers` workers of `retrain.cpus_per_worker` CPUs and `retrain.gpus_per_worker`
  GPUs. As many retrainings run side by side as there is room for with the fewest workers; `retrain.concurrent` lowers
  that number.
- One worker for each retraining (`retrain.workers: 1`) is fastest while there are as many retrainings as CPUs, since
  workers of one retraining wait for each other at every step. Use more workers to finish a single training sooner.
- On a cluster that grows on demand, `autoscaling.cpus` and `autoscaling.gpus` say how far.

`mnist-ray plan SPEC` prints how much runs at a time on this machine or, with `--address`, on a cluster.
"""

CHANGES = """\
## What may change while a run goes on

The same command goes on with a run. The keys below may then have other values (`name` and `storage` if the run's folder
was renamed or moved), and `search.num_trials` may grow until the test. All other keys define the results, and a run
refuses to go on if one of them has changed.

"""

NUMBERS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def spec_page() -> str:
    """Return the page."""
    schema = JobSpec.model_json_schema()
    parts = "\n".join(_part(schema, schema["$defs"], ""))
    operational = "\n".join(f"- `{key}`" for key in sorted(OPERATIONAL_KEYS))
    return f"{INTRODUCTION}\n{parts}\n{CONCURRENCY}\n{CHANGES}{operational}\n"


def _part(part: dict[str, Any], parts: dict[str, Any], prefix: str) -> Iterator[str]:
    """Yield the lines about a part of the spec: its own keys in a table, then the parts below it."""
    inner = {name: found for name, key in part["properties"].items() if (found := _reference(key, parts))}
    yield f"## {f'`{prefix}`' if prefix else 'The whole job'}\n"
    if prefix:
        yield " ".join(part["description"].split()) + "\n"
    yield "| key | value | default | meaning |\n|---|---|---|---|"
    for name, key in part["properties"].items():
        if name not in inner or "description" in key:
            default = "required" if name in part.get("required", []) else _default(key)
            yield f"| `{name}` | {_value(key)} | {default} | {key['description']} |"
    yield ""
    if prefix == "search":
        yield from _space(parts)
    if prefix == "search.early_stopping":
        yield EARLY_STOPPING
    for name, found in inner.items():
        yield from _part(found, parts, f"{prefix}.{name}".lstrip("."))


def _space(parts: dict[str, Any]) -> Iterator[str]:
    """Yield the lines about the two forms of a dimension."""
    yield "Each key below `search.space` is a key of `recipe` or `training`, with one of two forms:\n"
    yield "```yaml\nsearch:\n  space:\n    learning_rate: {low: 0.0001, high: 0.03, log: true}"
    yield "    batch_size: {choices: [64, 128, 256]}\n```\n"
    yield "| key | value | default | meaning |\n|---|---|---|---|"
    for name in ("Range", "Choices"):
        for key, content in parts[name]["properties"].items():
            default = "required" if key in parts[name].get("required", []) else _default(content)
            yield f"| `{key}` | {_value(content)} | {default} | {content['description']} |"
    yield ""


def _reference(key: dict[str, Any], parts: dict[str, Any]) -> dict[str, Any] | None:
    """Return the part that a key holds; None for a plain value."""
    for form in (key, *key.get("anyOf", [])):
        if "$ref" in form:
            found: dict[str, Any] = parts[form["$ref"].rpartition("/")[2]]
            return found
    return None


def _value(key: dict[str, Any]) -> str:
    """Describe the values that a key takes: their type and their range."""
    forms = key.get("anyOf", [key])
    return " or ".join(dict.fromkeys(map(_form, forms)))


def _form(form: dict[str, Any]) -> str:
    if "const" in form or "enum" in form:
        return "one of " + ", ".join(f"`{value}`" for value in form.get("enum", [form.get("const")]))
    kind = form.get("type", "object")
    if kind == "null":
        return "`null`"
    if kind == "array":
        if "prefixItems" in form:
            return f"a list of {len(form['prefixItems'])}"
        return f"a list, each {_value(form['items'])}"
    if kind == "object":
        return "keys and values"
    bounds = [f"{sign} {_figure(form[name])}" for name, sign in BOUNDS.items() if name in form]
    return " ".join([NUMBERS[kind], *([", ".join(bounds)] if bounds else [])])


def _figure(value: float) -> str:
    powers = {2**31: "2^31", 2**53: "2^53"}
    return powers.get(int(value), f"{value:,g}" if value < 10**6 else f"{value:,.0f}")


def _default(key: dict[str, Any]) -> str:
    if "default" not in key or isinstance(key["default"], dict):
        return "as below"
    value = key["default"]
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    PAGE.write_text(spec_page(), encoding="utf-8")
