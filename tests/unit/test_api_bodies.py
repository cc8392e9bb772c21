"""Protects the bounds of what clients send: both sides of every limit, strict types, no unknown fields."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from services.api.bodies import DatasetBody, ModelBody, TrainBody, safe_filename

LEAST = {"entry_point": "train.py", "runtime": "python3.11"}


def train(**fields: Any) -> TrainBody:
    return TrainBody.model_validate(json.loads(json.dumps(LEAST | fields)))  # as the framework reads a body


def refused(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        train(**fields)
    return str(caught.value)


def test_a_least_body_gets_the_defaults_of_the_page() -> None:
    body = train()
    assert (body.compute.cpu_cores, body.compute.memory_gb, body.compute.gpu) == (2, 8, False)
    assert (body.timeout_seconds, body.run_label, body.environment_vars) == (7200, None, {})
    assert body.grace_period_seconds == 10


@pytest.mark.parametrize("value", [1, 32])
def test_cpu_cores_within_the_limits_are_accepted(value: int) -> None:
    assert train(compute={"cpu_cores": value}).compute.cpu_cores == value


@pytest.mark.parametrize("value", [1, 128])
def test_memory_within_the_limits_is_accepted(value: int) -> None:
    assert train(compute={"memory_gb": value}).compute.memory_gb == value


@pytest.mark.parametrize("value", [1, 86400])
def test_a_timeout_within_the_limits_is_accepted(value: int) -> None:
    assert train(timeout_seconds=value).timeout_seconds == value


@pytest.mark.parametrize("value", [0, 600])
def test_a_grace_period_within_the_limits_is_accepted(value: int) -> None:
    assert train(grace_period_seconds=value).grace_period_seconds == value


NO_INTEGERS = ["2", 2.0, 2.5, True, None, [2]]


@pytest.mark.parametrize("value", [0, -1, 33, 10**30, *NO_INTEGERS])
def test_other_cpu_cores_are_refused(value: object) -> None:
    assert "cpu_cores" in refused(compute={"cpu_cores": value})


@pytest.mark.parametrize("value", [0, -1, 129, 10**30, *NO_INTEGERS])
def test_other_memory_is_refused(value: object) -> None:
    assert "memory_gb" in refused(compute={"memory_gb": value})


@pytest.mark.parametrize("value", [0, -1, 86401, 10**30, *NO_INTEGERS])
def test_other_timeouts_are_refused(value: object) -> None:
    assert "timeout_seconds" in refused(timeout_seconds=value)


@pytest.mark.parametrize("value", [-1, 601, 10**30, *NO_INTEGERS])
def test_other_grace_periods_are_refused(value: object) -> None:
    assert "grace_period_seconds" in refused(grace_period_seconds=value)


@pytest.mark.parametrize("value", ["true", 1, 0, None])
def test_gpu_is_a_boolean_and_nothing_like_one(value: object) -> None:
    assert train(compute={"gpu": True}).compute.gpu is True
    assert "gpu" in refused(compute={"gpu": value})


@pytest.mark.parametrize("label", ["", "x", "x" * 256, "é" * 256, "ein Lauf 🏃"])
def test_a_label_within_the_limits_is_accepted(label: str) -> None:
    assert train(run_label=label).run_label == label


@pytest.mark.parametrize("label", ["x" * 257, "é" * 257, "two\nlines", "nul\0", "half \ud800", 7])
def test_other_labels_are_refused(label: object) -> None:
    assert "run_label" in refused(run_label=label)


@pytest.mark.parametrize("runtime", ["python3.10", "python3.11", "python3.12"])
def test_the_runtimes_of_the_page_are_accepted(runtime: str) -> None:
    assert train(runtime=runtime).runtime == runtime


@pytest.mark.parametrize("runtime", ["python3.9", "python3.13", "Python3.11", "", None, 3.11])
def test_other_runtimes_are_refused(runtime: object) -> None:
    assert "runtime" in refused(runtime=runtime)


@pytest.mark.parametrize("entry_point", ["", "x" * 256, None, 1])
def test_an_entry_point_is_a_text_that_can_be_a_file_name(entry_point: object) -> None:
    assert "entry_point" in refused(entry_point=entry_point)


@pytest.mark.parametrize("field", ["entry_point", "runtime"])
def test_entry_point_and_runtime_are_required(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        TrainBody.model_validate({name: value for name, value in LEAST.items() if name != field})


def test_unknown_fields_are_refused_at_every_level() -> None:
    assert "priority" in refused(priority=1)
    assert "gpus" in refused(compute={"gpus": 1})


@pytest.mark.parametrize("values", [{}, {"A": ""}, {"A": "x\ny=\t'\"$"}, {"_": "🏃"}, {"x" * 128: "1"}])
def test_variables_keep_their_values_as_they_are(values: dict[str, str]) -> None:
    assert train(environment_vars=values).environment_vars == values


def test_a_hundred_variables_are_accepted_and_one_more_is_not() -> None:
    many = {f"V{number}": "x" for number in range(100)}
    assert train(environment_vars=many).environment_vars == many
    assert "100" in refused(environment_vars=many | {"W": "x"})


@pytest.mark.parametrize("letter", ["x", "é"])
def test_names_and_values_of_65536_bytes_are_accepted_and_one_byte_more_is_not(letter: str) -> None:
    count = 65534 // len(letter.encode())
    values = {"NN": letter * count}
    assert train(environment_vars=values).environment_vars == values
    assert "65536" in refused(environment_vars={"NNN": letter * count})


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "A=B", "A\nB", "A\n", "A\0", "É", "x" * 129, "../A", "A.B"])
def test_malformed_names_are_refused(name: str) -> None:
    assert "environment_vars" in refused(environment_vars={name: "x"})


@pytest.mark.parametrize(
    "name",
    [
        *("DATASET_PATH", "MODEL_OUTPUT_PATH", "METRICS_PATH", "RUN_ID", "HOME", "TMPDIR", "PATH", "PYTHONUNBUFFERED"),
        *("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONSTARTUP", "PYTHONPATH", "DOCKER_HOST", "RUNYARD_ANYTHING"),
    ],
)
def test_reserved_names_are_refused(name: str) -> None:
    assert "reserved" in refused(environment_vars={name: "x"})


def test_names_that_only_resemble_reserved_ones_are_accepted() -> None:
    values = {"MY_PATH": "1", "RUN_ID_2": "2", "LDX": "3", "dataset_path": "4"}
    assert train(environment_vars=values).environment_vars == values


@pytest.mark.parametrize("value", ["a\0b", 1, True, None, {"a": "b"}, ["a"]])
def test_a_value_is_a_text_without_nul(value: object) -> None:
    assert "environment_vars" in refused(environment_vars={"A": value})


@pytest.mark.parametrize("value", [[], "A=B", None, 1])
def test_variables_are_an_object(value: object) -> None:
    assert "environment_vars" in refused(environment_vars=value)


def test_every_wrong_field_is_named_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        train(runtime="perl", timeout_seconds="60", compute={"cpu_cores": 0, "memory_gb": 129}, more=1)
    assert {error["loc"] for error in caught.value.errors()} == {
        ("runtime",),
        ("timeout_seconds",),
        ("compute", "cpu_cores"),
        ("compute", "memory_gb"),
        ("more",),
    }


@pytest.mark.parametrize("name", ["x", "x" * 256, "wine quality", "Größe"])
def test_datasets_and_models_have_names_of_one_line(name: str) -> None:
    assert DatasetBody(name=name).name == ModelBody(name=name, model_type="auto").name == name


@pytest.mark.parametrize("name", ["", "x" * 257, "a\nb", "a\0b", "a\u2028b"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        DatasetBody(name=name)
    with pytest.raises(ValidationError, match="name"):
        ModelBody(name=name, model_type="custom")


def model(*definitions: Any) -> ModelBody:
    return ModelBody.model_validate({"name": "m", "model_type": "custom", "metric_definitions": list(definitions)})


def wrong_places(*definitions: Any) -> set[tuple[int | str, ...]]:
    with pytest.raises(ValidationError) as caught:
        model(*definitions)
    return {error["loc"] for error in caught.value.errors()}


def defined(name: object = "loss", regex: object = "loss=(.*)") -> dict[str, object]:
    return {"name": name, "regex": regex}


def test_a_model_without_metric_definitions_reads_as_it_did_before_there_were_any() -> None:
    assert model().metric_definitions == []
    assert model().model_dump() == {"name": "m", "model_type": "custom", "dataset_id": None}
    assert model(defined()).model_dump()["metric_definitions"] == [defined()]


def test_forty_metric_definitions_are_accepted_and_one_more_is_not() -> None:
    many = [defined(name=f"m{number}") for number in range(41)]
    assert len(model(*many[:40]).metric_definitions) == 40
    assert wrong_places(*many) == {("metric_definitions",)}


@pytest.mark.parametrize("name", ["x", "x" * 256, "é" * 256, "val/loss (kg)"])
def test_a_metric_is_named_as_in_metrics_path(name: str) -> None:
    assert model(defined(name=name)).metric_definitions[0].name == name


@pytest.mark.parametrize("name", ["", "x" * 257, "a\nb", "a\u200bb", "\0", "\ud800", 7, None])
def test_other_names_of_metrics_are_refused(name: object) -> None:
    assert wrong_places(defined("fine"), defined(name=name)) == {("metric_definitions", 1, "name")}


@pytest.mark.parametrize("regex", ["(.)", "x" * 253 + "(.)", "é" * 253 + "(.)", r"a\tb(?:c|d)(\d+)"])
def test_a_pattern_with_one_group_is_accepted(regex: str) -> None:
    assert model(defined(regex=regex)).metric_definitions[0].regex == regex


@pytest.mark.parametrize(
    "regex",
    ["", "x" * 254 + "(.)", "loss=.*", "(a)(b)", "(", r"(a)\1", "(?=a)(b)", r"(\pL{20})", "a\n(b)", "(\0)", 1, None],
)
def test_other_patterns_are_refused(regex: object) -> None:
    assert wrong_places(defined("fine"), defined(regex=regex)) == {("metric_definitions", 1, "regex")}


def test_two_metrics_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="number 3"):
        model(defined("a"), defined("b"), defined("a"))
    assert wrong_places({"name": "a"}, {**defined(), "step": 1}) == {
        ("metric_definitions", 0, "regex"),
        ("metric_definitions", 1, "step"),
    }


@pytest.mark.parametrize(
    "name", ["a", "train.py", ".hidden", "two words.csv", "x" * 255, "é" * 127, "a..b", "größe.csv"]
)
def test_plain_file_names_are_accepted(name: str) -> None:
    assert safe_filename(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../a", "a/b", "/a", "a\\b", "-rf", "..a", " a", "a ", "a\nb", "a\0", "\x7f", "\u2028"),
        *("x" * 256, "é" * 128, "\ud800"),
    ],
)
def test_paths_options_and_control_characters_are_no_file_names(name: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        safe_filename(name)
