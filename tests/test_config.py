"""Specs are read as written, or refused with key, value and remedy; a run goes on only with its own spec."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from mnist_ray.config import (
    OPERATIONAL_KEYS,
    Choices,
    Hyperparameters,
    JobSpec,
    Range,
    Search,
    dump_spec,
    load_spec,
    parse_spec,
    refused_changes,
    spec_keys,
)
from mnist_ray.errors import SpecError

JOBS = Path(__file__).parent.parent / "jobs"
SPEC_FILES = sorted(JOBS.glob("*.yaml"))
# Not a job spec: what `ray job submit` gives to Ray.
JOB_SPECS = [path for path in SPEC_FILES if path.name != "runtime-env.yaml"]


DIGITS = {"name": "digits"}


def a_spec(**parts: Any) -> JobSpec:
    return parse_spec({"data": DIGITS, **parts})


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text("data: {name: digits}\n")
    return path


def refusal(content: dict[Any, Any]) -> str:
    with pytest.raises(SpecError) as caught:
        parse_spec(content, "job.yaml")
    return str(caught.value)


# --- reading what is right


@pytest.mark.parametrize("path", JOB_SPECS, ids=lambda path: path.name)
def test_specs_in_jobs_load(path: Path) -> None:
    spec = load_spec(path)
    assert spec.name == path.stem
    assert spec == load_spec(str(path))
    # the run of mnist-best in docs/results began with a space that lacks the strength 0 of `training.augment`
    assert spec.is_in_space(spec.starting_point) or spec.name == "mnist-best"


def test_defaults_are_the_baseline() -> None:
    spec = a_spec()
    assert spec.baseline == Hyperparameters(learning_rate=0.001, dropout=0.25, batch_size=128)
    assert spec.search.space == {
        "learning_rate": Range(low=1e-4, high=3e-2, log=True),
        "dropout": Range(low=0.0, high=0.6),
        "batch_size": Choices(choices=(32, 64, 128, 256, 512)),
    }
    assert (spec.search.objective, spec.tested_epochs, spec.tests_baseline) == ("val_loss", 45, True)


ELABORATE = {
    "name": "all.of-it_1",
    "seed": 7,
    "data": {"name": "mnist", "num_validation": 123, "dir": "~/data with spaces"},
    "recipe": {"learning_rate": 1e-05, "dropout": 0.0, "batch_size": 48},
    "search": {
        "space": {"learning_rate": {"choices": [1e-05, 1]}, "batch_size": {"low": 32, "high": 64, "log": True}},
        "early_stopping": None,
        "max_concurrent_trials": 3,
        "objective": "val_accuracy",
    },
    "retrain": {"seeds": [3, 1, 2], "workers": [2, 8], "baseline": False},
    "max_hours": 0.5,
}


@pytest.mark.parametrize(
    "spec", [*map(load_spec, JOB_SPECS), a_spec(), parse_spec(ELABORATE)], ids=lambda spec: spec.name
)
def test_dumped_spec_reads_back(spec: JobSpec, tmp_path: Path) -> None:
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_spec(spec))
    again = load_spec(path)
    assert again == spec
    assert refused_changes(spec, again) == []


@pytest.mark.parametrize("text", ["1e4", "0x1f", "null", "true", "2024-01-01", "1.5", "12"])
def test_ambiguous_text_stays_text(text: str, tmp_path: Path) -> None:
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_spec(a_spec(name=text, data=DIGITS | {"dir": text})))
    assert (load_spec(path).name, load_spec(path).data.dir) == (text, text)


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", ".1e-3", "0.0001", "10e-5", "+1e-4"])
def test_exponents_are_numbers(spec_file: Path, text: str) -> None:
    spec_file.write_text(f"data: {{name: digits}}\nrecipe: {{learning_rate: {text}}}\n")
    assert load_spec(spec_file).recipe.learning_rate == pytest.approx(1e-4, rel=1e-12)
    assert load_spec(spec_file, [f"recipe.learning_rate={text}"]).recipe.learning_rate == pytest.approx(1e-4, rel=1e-12)


# --- overriding


@pytest.mark.parametrize("key", spec_keys())
def test_every_key_can_be_overridden(spec_file: Path, key: str) -> None:
    """An override by the default value changes nothing else."""
    text = yaml.safe_dump(spec_keys()[key], default_flow_style=True).removesuffix("\n...\n")
    assert load_spec(spec_file, [f"{key}={text}"]) == a_spec()


def test_last_override_counts(spec_file: Path) -> None:
    spec_file.write_text("data: {name: digits}\nsearch: {num_trials: 3, num_epochs: 4}\n")
    spec = load_spec(spec_file, ["search.num_trials=50", "search.num_trials=60"])
    assert (spec.search.num_trials, spec.search.num_epochs) == (60, 4)


def test_workers_are_a_number_or_two(spec_file: Path) -> None:
    for text, workers, ends in (("3", 3, (3, 3)), ("[1, 2]", (1, 2), (1, 2)), ("[2,2]", (2, 2), (2, 2))):
        retrain = load_spec(spec_file, [f"retrain.workers={text}"]).retrain
        assert retrain is not None and retrain.workers == workers
        assert (retrain.fewest_workers, retrain.most_workers) == ends


def test_override_keeps_the_other_dimensions(spec_file: Path) -> None:
    """Without this `--set search.space.dropout=...` would drop learning rate and batch size from the search."""
    space = load_spec(spec_file, ["search.space.dropout.high=0.5"]).search.space
    assert space == a_spec().search.space | {"dropout": Range(low=0.0, high=0.5)}
    spec_file.write_text("data: {name: digits}\nsearch: {space: {dropout: {low: 0, high: 0.3}}}\n")
    assert load_spec(spec_file, ["search.space.dropout.high=0.5"]).search.space == {"dropout": Range(low=0, high=0.5)}


def test_override_turns_a_part_on(spec_file: Path) -> None:
    spec_file.write_text("data: {name: digits}\nsearch: {early_stopping: null}\n")
    stopping = load_spec(spec_file, ["search.early_stopping.grace_epochs=2"]).search.early_stopping
    assert stopping is not None
    assert stopping.grace_epochs == 2


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("search.num_trials", ["'search.num_trials'", "must look like"]),
        ("", ["''", "must look like"]),
        ("=3", ["'=3'", "must look like"]),
        ("search..num_trials=3", ["'search..num_trials=3'", "must look like"]),
        ("search.num_trails=3", ["search.num_trails", "remove it", "did you mean search.num_trials?"]),
        ("num_trials=3", ["num_trials", "remove it", "did you mean search.num_trials?"]),
        ("search.num_trials=many", ["search.num_trials", "'many'", "integer", "for example search.num_trials=20"]),
        ("data=3", ["data: 3", "keys and values", "for example data.name=digits"]),
        ("name=[", ["--set name", "not valid YAML"]),
        ("name=!!bool x", ["--set name", "not valid YAML"]),
        ("retrain.seeds=3", ["retrain.seeds: 3", "must be a list", "for example retrain.seeds=[0]"]),
    ],
)
def test_bad_override_is_refused(spec_file: Path, override: str, parts: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(spec_file, [override])
    for part in parts:
        assert part in str(caught.value)


# --- refusing what is wrong

WRONG_WORKERS: list[Any] = [
    *(0, True, 1.5, "2", None, {}),
    *([], [2], [0, 2], [3, 2], [1, 2, 3], [1, 2.0], [True, 2], ["1", "2"]),
]
WRONG: dict[str, tuple[dict[Any, Any], list[str]]] = {
    # what is wrong: the spec beside the data, and what the message must hold: key and value, then rule and remedy
    "data missing": ({"data": None}, ["data: None", "for example data.name=digits"]),
    "unknown data set": ({"data": {"name": "cifar"}}, ["data.name: 'cifar'", "'mnist'", "change it"]),
    "unknown key": ({"serach": {}}, ["serach", "remove it", "did you mean search?"]),
    "unknown key below": ({"retrain": {"num_epoch": 3}}, ["retrain.num_epoch ", "did you mean retrain.num_epochs?"]),
    "key that is a number": ({1: 2}, ["1: 1 must be text"]),
    "text for a number": ({"recipe": {"dropout": "0.1"}}, ["recipe.dropout: '0.1'", "number", "recipe.dropout=0.25"]),
    "truth for a number": ({"search": {"num_trials": True}}, ["search.num_trials: True", "integer"]),
    "number for a truth": ({"retrain": {"baseline": 1}}, ["retrain.baseline: 1", "boolean"]),
    "number for a text": ({"name": 12}, ["name: 12", "must be text"]),
    "fraction for a count": ({"search": {"num_trials": 2.5}}, ["search.num_trials: 2.5", "integer", "change it"]),
    "nothing for a part": ({"search": None}, ["search: None", "keys and values", "change it"]),
    "not finite": ({"max_hours": float("inf")}, ["max_hours: inf", "finite", "change it"]),
    "not a number": ({"recipe": {"learning_rate": float("nan")}}, ["recipe.learning_rate: nan", "change it"]),
    "dropout 1": ({"recipe": {"dropout": 1.0}}, ["recipe.dropout: 1.0", "less than 1", "recipe.dropout=0.25"]),
    "learning rate 0": ({"recipe": {"learning_rate": 0.0}}, ["recipe.learning_rate: 0.0", "greater than 0"]),
    "zero epochs": ({"retrain": {"num_epochs": 0}}, ["retrain.num_epochs: 0", "greater than or equal to 1", "=45"]),
    "zero search epochs": ({"search": {"num_epochs": 0}}, ["search.num_epochs: 0", "greater than or equal to 1"]),
    "no seeds": ({"retrain": {"seeds": []}}, ["retrain.seeds: []", "at least one", "retrain.seeds=[0]"]),
    "seed twice": ({"retrain": {"seeds": [1, 1]}}, ["retrain.seeds [1, 1]", "twice", "remove one"]),
    "seed is text": ({"retrain": {"seeds": ["a"]}}, ["retrain.seeds.0: 'a'", "integer"]),
    "huge seed": ({"seed": 2**31}, ["seed: 2147483648", "less than 2147483648"]),
    "huge number": ({"seed": 1 << 50_000}, ["seed: a number of 50001 bits", "less than 2147483648"]),
    "batch below workers": (
        {"recipe": {"batch_size": 2}, "retrain": {"workers": 3}},
        ["recipe.batch_size 2", "retrain.workers 3", "raise it"],
    ),
    "searched batch below workers": (
        {"search": {"space": {"batch_size": {"choices": [64, 2]}}}, "retrain": {"workers": 3}},
        ["search.space.batch_size 2", "retrain.workers 3", "raise it"],
    ),
    "searched batch below the most workers": (
        {"search": {"space": {"batch_size": {"choices": [64, 2]}}}, "retrain": {"workers": [1, 3]}},
        ["search.space.batch_size 2", "retrain.workers [1, 3]", "raise it", "at most 2 workers"],
    ),
    **{
        f"workers {value!r}": (
            {"retrain": {"workers": value}},
            [f"retrain.workers: {value!r} must be a whole number from 1 on, or", "[2, 8]", "change it", "=1)"],
        )
        for value in WRONG_WORKERS
    },
}
WRONG |= {
    "confirmation": (
        {"confirm": {"top_k": 3, "seeds": 2}},
        ["confirm was replaced", "final: {top_k: 3", "final: null"],
    ),
    "margin without seeds": ({"final": {"seeds": 1}}, ["final.seeds 1", "keep_recipe_within_se 1", "2 seeds or more"]),
    "baseline from a run and none": (
        {"retrain": {"baseline": False, "baseline_from": "other"}},
        ["retrain.baseline_from other", "retrain.baseline: true"],
    ),
    "no tracker": ({"log_to": ["tensorbord"]}, ["log_to 'tensorbord'", "mlflow=", "did you mean tensorboard?"]),
    "tracker with a place": ({"log_to": ["optuna=here"]}, ["log_to 'optuna=here' is no tracker"]),
    "tracker without its place": ({"log_to": ["mlflow="]}, ["log_to 'mlflow=' is no tracker"]),
    "tracker twice": ({"log_to": ["mlflow", "mlflow=here"]}, ["log_to holds mlflow twice", "remove one"]),
    "password of a tracker": (
        {"log_to": ["mlflow=http://me:pw@host"]},
        ["log_to mlflow=", "$MLFLOW_TRACKING_PASSWORD"],
    ),
    "tracker's files in a store": (
        {"log_to": ["tensorboard"], "storage": "s3://bucket/runs"},
        ["log_to tensorboard", "storage s3://", "mlflow=ADDRESS"],
    ),
    "searched schedule": (
        {"search": {"space": {"schedule": {"choices": ["constant", "cosine"]}}}},
        ["search.early_stopping", "schedule", "early_stopping: null"],
    ),
    "searched average": (
        {"search": {"space": {"ema": {"low": 0.0, "high": 0.2}}}},
        ["search.early_stopping", "ema", "early_stopping: null"],
    ),
}
WRONG_DIMENSIONS: dict[str, tuple[Any, list[str]]] = {
    "low above high": ({"dropout": {"low": 0.5, "high": 0.1}}, ["search.space.dropout.low 0.5", "0.1", "swap"]),
    "no logarithm": (
        {"learning_rate": {"low": 0, "high": 1, "log": True}},
        ["search.space.learning_rate.low 0.0", "logarithm", "above 0"],
    ),
    "off on a linear scale": (
        {"dropout": {"low": 0.1, "high": 0.5, "off": 0.0}},
        ["search.space.dropout.off 0.0", "log: true"],
    ),
    "off inside": (
        {"weight_decay": {"low": 1e-5, "high": 0.1, "log": True, "off": 0.01}},
        ["search.space.weight_decay.off 0.01", "leave it out"],
    ),
    "off that is no value": (
        {"weight_decay": {"low": 1e-5, "high": 0.1, "log": True, "off": -1.0}},
        ["search.space.weight_decay holds -1.0", "change it"],
    ),
    "word that is none": (
        {"schedule": {"choices": ["constant", "linear"]}},
        ["search.space.schedule holds 'linear'", "'one_cycle'", "change it"],
    ),
    "range of words": ({"schedule": {"low": 0.0, "high": 1.0}}, ["search.space.schedule holds 0.0", "'cosine'"]),
    "dropout up to 1": ({"dropout": {"low": 0, "high": 1}}, ["search.space.dropout holds 1.0", "less than 1"]),
    "half a batch": ({"batch_size": {"low": 1.5, "high": 3}}, ["search.space.batch_size", "1.5", "whole"]),
    "float batch": ({"batch_size": {"choices": [32, 64.0]}}, ["search.space.batch_size holds 64.0", "integer"]),
    "choice twice": ({"batch_size": {"choices": [32, 32]}}, ["search.space.batch_size.choices (32, 32)", "remove one"]),
    "choice is text": (
        {"batch_size": {"choices": ["x"]}},
        ["search.space.batch_size holds 'x'", "integer", "change it"],
    ),
    "no choice": ({"batch_size": {"choices": []}}, ["search.space.batch_size.choices: []", "at least one"]),
    "no list": ({"batch_size": {"choices": 32}}, ["search.space.batch_size.choices: 32", "must be a list"]),
    "no range": ({"dropout": 0.3}, ["search.space.dropout: 0.3", "keys and values", "change it"]),
    "half a range": ({"dropout": {"low": 0.3}}, ["search.space.dropout.high is missing", "add it"]),
    "both kinds": ({"dropout": {"low": 0.3, "choices": [0.1]}}, ["search.space.dropout.low", "remove it"]),
    "unknown": (
        {"lerning_rate": {"low": 0.1, "high": 1}},
        ["search.space.lerning_rate", "did you mean learning_rate?"],
    ),
    "named range": ({"range": {"low": 0.1}}, ["search.space.range.high is missing"]),
    "none": ({}, ["search.space: {}", "at least one"]),
}
WRONG |= {
    f"space: {what}": ({"search": {"space": space} | ({"early_stopping": None} if "schedule" in space else {})}, parts)
    for what, (space, parts) in WRONG_DIMENSIONS.items()
}


@pytest.mark.parametrize("what", WRONG)
def test_fault_has_key_value_and_remedy(what: str) -> None:
    content, parts = WRONG[what]
    message = refusal({"data": DIGITS, **content})
    assert message.startswith("job.yaml: ")
    assert len(message.splitlines()) == 1, "one fault, one line"
    for part in parts:
        assert part in message


@pytest.mark.parametrize("name", ["../x", "", "a/b", "/tmp/x", ".", "..", ".hidden", "a b", "ä", "a\n", "-x", "x" * 65])
def test_name_must_be_a_plain_folder(name: str) -> None:
    message = refusal({"data": DIGITS, "name": name})
    assert f"name {name!r}" in message
    assert "letters, digits" in message


@pytest.mark.parametrize("name", ["x" * 64, "a", "2024-05-01", "mnist_ray.v1"])
def test_plain_names_are_accepted(name: str) -> None:
    assert a_spec(name=name).name == name


def test_every_fault_is_named() -> None:
    message = refusal({"retrain": {"num_epochs": 0, "workers": 0}, "sed": 1})
    assert [line.split(" ")[1].rstrip(":") for line in message.splitlines()] == [
        "data",
        "retrain.num_epochs",
        "retrain.workers",
        "sed",
    ]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize("place", ["name", "search", "deeper"])
def test_deep_values_are_refused_briefly(place: str) -> None:
    deep = nested(50_000)
    content = {"search": {"space": {"dropout": deep}}} if place == "deeper" else {place: deep}
    message = refusal({"data": DIGITS, **content})
    assert place == "deeper" or place in message
    assert len(message) < 500


BAD_FILES = {
    "empty": (b"", "must hold keys and values"),
    "list": (b"- a\n- b\n", "must hold keys and values"),
    "text": (b"just words", "must hold keys and values"),
    "tabs": (b"data:\n\tname: digits\n", "not valid YAML"),
    "binary": (bytes(range(256)), "UTF-8"),
    "zeros": (bytes(100), "not valid YAML"),
    "UTF-16": ("data: {name: digits}".encode("utf-16"), "UTF-8"),
    "unclosed": (b"data: {name: digits", "not valid YAML"),
    "two documents": (b"data: {name: digits}\n---\nname: x\n", "not valid YAML"),
    "python object": (b"data: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    "bad tag": (b"data: !!bool x\n", "not valid YAML"),
    "bad timestamp": (b"data: !!timestamp x\n", "not valid YAML"),
    "bad mapping": (b"data: !!map [a]\n", "not valid YAML"),
    "empty integer": (b"data: !!int ''\n", "not valid YAML"),
    "huge integer": (b"seed: " + b"9" * 5000, "not valid YAML"),
    "deep": (b"[" * 5000, "not valid YAML"),
    "contains itself": (b"data: &d {name: *d}\n", "data.name"),
    "list for a key": (b"? [a]\n: 3\n", "not valid YAML"),
    "key twice": (b"data: {name: digits}\nseed: 1\nseed: 2\n", "'seed' is given twice, remove one at line 3"),
    "key below twice": (b"data: {name: digits, name: mnist}\n", "'name' is given twice, remove one at line 1"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_unreadable_file_is_named(tmp_path: Path, what: str) -> None:
    content, part = BAD_FILES[what]
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert str(path) in str(caught.value)
    assert part in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    for path, why in (
        (tmp_path, "directory"),
        (tmp_path / "absent.yaml", "No such file"),
        (tmp_path / ("x" * 300), "too long"),
    ):
        with pytest.raises(SpecError, match=why) as caught:
            load_spec(path)
        assert str(path) in str(caught.value)
        assert "give the path of a job spec" in str(caught.value)


@pytest.mark.parametrize("kind", ["pipe", "device", "too large"])
def test_spec_must_be_a_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "job.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(b"data: {name: digits}\n" + b"#" * 10**6)
    with pytest.raises(SpecError, match=rf"{path}: cannot be read \(it (is a (named pipe|device)|is larger than 1 MB)"):
        load_spec(path)


# --- YAML 1.2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("seed=010", 10),
        ("seed=08", 8),
        ("seed=0o17", 15),
        ("seed=0x1F", 31),
        ("seed=+5", 5),
        ("max_hours=1e-1", 0.1),
        ("max_hours=.5", 0.5),
        ("max_hours=1.", 1.0),
        ("retrain.baseline=FALSE", False),
        ("final=~", None),
        ("final=", None),
        ("name=no", "no"),
        ("name=On", "On"),
        ("name=y", "y"),
        ("name=2024-05-01", "2024-05-01"),
        ("name=1_000", "1_000"),
        ("name=0b11", "0b11"),
    ],
)
def test_values_are_those_of_yaml_1_2(spec_file: Path, text: str, value: Any) -> None:
    found: Any = load_spec(spec_file, [text])
    for name in text.partition("=")[0].split("."):
        found = getattr(found, name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_hours=1:30", "max_hours: '1:30' must be a valid number, or null for none: write 1.5"),
        ("max_hours=10:45", "write 10.75"),
        ("search.num_trials=1_000", "search.num_trials: '1_000' must be a valid integer: write 1000"),
        ("seed=0:10", "seed: '0:10'"),
        *(
            (f"retrain.baseline={word}", f"retrain.baseline: '{word}' must be a valid boolean: write {truth}")
            for word, truth in {"yes": "true", "no": "false", "On": "true", "OFF": "false"}.items()
        ),
        ("search.space.dropout={low: 0.1, high: 0.2, log: yes}", "search.space.dropout.log: 'yes' must be a valid"),
        ("search.early_stopping=false", "False must hold keys and values, or null for none: change it"),
        ("search.early_stopping=no", "'no' must hold keys and values, or null for none"),
        ("retrain=false", "retrain: False must hold keys and values, or null for none"),
        ("final=false", "final: False must hold keys and values, or null for none"),
        ("max_hours=never", "max_hours: 'never' must be a valid number, or null for none"),
        ("search.max_concurrent_trials=0.5", "or null for none"),
    ],
)
def test_refusal_says_what_to_write(spec_file: Path, text: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(spec_file, [text])
    assert said in str(caught.value)


def test_null_is_offered_only_where_it_is_taken(spec_file: Path) -> None:
    for key in ("search", "search.num_epochs", "retrain.baseline"):
        with pytest.raises(SpecError) as caught:
            load_spec(spec_file, [f"{key}=text"])
        assert "or null" not in str(caught.value)


# --- names that must agree


def test_searched_names_are_hyperparameters() -> None:
    space = Search().space
    assert list(space) == [name for name in Hyperparameters.model_fields if name in space]


MAY_CHANGE_BETWEEN_SESSIONS = {
    *("name", "storage", "data.dir", "log_to"),  # where things lie
    *("max_hours", "max_failures"),  # how long and how patiently
    *("autoscaling.cpus", "autoscaling.gpus"),
    *("search.cpus_per_trial", "search.gpus_per_trial", "search.max_concurrent_trials"),  # on what
    *("retrain.concurrent", "retrain.workers", "retrain.cpus_per_worker", "retrain.gpus_per_worker"),
}


def test_operational_keys_change_no_result() -> None:
    assert OPERATIONAL_KEYS == MAY_CHANGE_BETWEEN_SESSIONS
    assert spec_keys().keys() >= OPERATIONAL_KEYS


def test_space_may_leave_out_the_baseline() -> None:
    assert a_spec().is_in_space(a_spec().baseline)
    for space in (
        {"dropout": {"low": 0.3, "high": 0.6}},
        {"batch_size": {"choices": [32, 64]}},
        {"learning_rate": {"low": 0.002, "high": 0.01, "log": True}, "dropout": {"low": 0.0, "high": 0.6}},
    ):
        assert not a_spec(search={"space": space}).is_in_space(Hyperparameters())
    assert a_spec(search={"space": {"batch_size": {"low": 128, "high": 129}}}).is_in_space(Hyperparameters())


def test_space_holds_the_parts_of_training() -> None:
    """Which a trial has, and the recipe as published has not."""
    spec = a_spec(training={"schedule": "cosine"})
    assert spec.fixed_trials == (spec.baseline, spec.starting_point)
    assert not spec.is_in_space(spec.baseline) and spec.is_in_space(spec.starting_point)
    space = {"schedule": {"choices": ["constant", "cosine"]}}
    both = a_spec(training={"schedule": "cosine"}, search={"space": space, "early_stopping": None})
    assert both.is_in_space(both.baseline) and both.is_in_space(both.starting_point)
    assert a_spec().fixed_trials == (a_spec().baseline,)


def test_off_lies_beside_a_range() -> None:
    space = {"weight_decay": {"low": 1e-5, "high": 0.1, "log": True, "off": 0.0}}
    spec = a_spec(search={"space": space})
    decay = spec.search.space["weight_decay"]
    assert [decay.holds(value) for value in (0.0, 1e-5, 0.1, 1e-6, 0.2)] == [True, True, True, False, False]
    assert spec.is_in_space(spec.baseline)
    assert parse_spec(spec.model_dump(mode="json")) == spec


def test_final_has_the_retrainings_budget() -> None:
    assert a_spec(retrain={"num_epochs": 30}).final_epochs == 30
    assert a_spec(retrain={"num_epochs": 30}, final={"num_epochs": 7}).final_epochs == 7


# --- going on with a run

OTHER_VALUES: dict[str, Any] = {
    "training.schedule": "cosine",
    "training.warmup": 0.1,
    "training.ema": 0.1,
    "training.augment": 1.0,
    "training.weight_decay": 0.01,
    "autoscaling.cpus": 8,
    "autoscaling.gpus": 1,
    "final.top_k": 4,
    "final.seeds": 3,
    "final.num_epochs": 30,
    "final.keep_recipe_within_se": 2.0,
    "test.also": ["qmnist50k"],
    "report.decided_by": "test_accuracy",
    "report.equivalence_points": 0.2,
    "report.equivalence_loss": 0.002,
    "precision": "bfloat16",
    "kernels": "plain",
    "name": "other",
    "seed": 1,
    "data.name": "mnist",
    "data.num_validation": 4999,
    "data.transpose": True,
    "data.test_fraction": 0.5,
    "data.dir": "/elsewhere",
    "recipe.learning_rate": 0.002,
    "recipe.dropout": 0.3,
    "recipe.batch_size": 64,
    "search.num_trials": 19,
    "search.num_epochs": 11,
    "search.objective": "val_accuracy",
    "search.space.learning_rate.low": 2e-4,
    "search.space.learning_rate.high": 2e-2,
    "search.space.learning_rate.log": False,
    "search.space.learning_rate.off": 1.0,
    "search.space.dropout.low": 0.1,
    "search.space.dropout.high": 0.5,
    "search.space.dropout.log": True,
    "search.space.dropout.off": 0.0,
    "search.space.batch_size.choices": [64, 128],
    "search.early_stopping.grace_epochs": 2,
    "search.early_stopping.grace_steps": 500,
    "search.early_stopping.reduction_factor": 7.5,
    "search.cpus_per_trial": 2,
    "search.gpus_per_trial": 0.5,
    "search.max_concurrent_trials": 3,
    "retrain.num_epochs": 46,
    "retrain.seeds": [1],
    "retrain.baseline": False,
    "retrain.baseline_from": "another-run",
    "retrain.concurrent": 3,
    "retrain.workers": [1, 2],
    "retrain.cpus_per_worker": 2,
    "retrain.gpus_per_worker": 1,
    "max_hours": 1.0,
    "max_failures": 3,
    "storage": "elsewhere",
    "log_to": ["tensorboard", "mlflow=http://127.0.0.1:5000"],
}


def with_value(key: str, value: Any) -> JobSpec:
    content = a_spec().model_dump(mode="json")
    if key in ("search.space.dropout.log", "search.space.dropout.off"):  # a logarithm needs a low above 0
        content["search"]["space"]["dropout"]["low"] = 0.1
    if key == "search.space.dropout.off":
        content["search"]["space"]["dropout"]["log"] = True
    if key == "test.also":
        content["data"]["name"] = "mnist"  # digits have no second test
    if key in ("data.transpose", "data.test_fraction"):
        content["data"] |= {"name": "images", "dir": "own"}
    *parents, last = key.split(".")
    part = content
    for name in parents:
        part = part[name]
    part[last] = value
    return parse_spec(content)


@pytest.mark.parametrize("key", spec_keys())
def test_only_changed_results_are_refused(key: str) -> None:
    recorded, asked = with_value(key, spec_keys()[key]), with_value(key, OTHER_VALUES[key])
    assert recorded != asked
    changes = refused_changes(recorded, asked)
    if key in MAY_CHANGE_BETWEEN_SESSIONS:
        assert changes == []
    else:
        [change] = changes
        assert change == f"{key}: {spec_keys()[key]!r} in the run, {OTHER_VALUES[key]!r} now"
        assert refused_changes(asked, asked) == []


def test_only_more_trials_extend_a_run() -> None:
    twenty, thirty = a_spec(search={"num_trials": 20}), a_spec(search={"num_trials": 30})
    assert refused_changes(twenty, thirty) == []
    assert refused_changes(thirty, twenty) == ["search.num_trials: 30 in the run, 20 now"]


def test_changed_dimensions_are_refused() -> None:
    recorded = a_spec()
    ranged = a_spec(search={"space": recorded.search.space | {"batch_size": {"low": 32, "high": 512}}})
    narrower = a_spec(search={"space": {"dropout": {"low": 0.0, "high": 0.6}}})
    without_stopping = a_spec(search={"early_stopping": None})
    for asked in (ranged, narrower, without_stopping):
        assert refused_changes(recorded, asked)
        assert refused_changes(asked, recorded)
