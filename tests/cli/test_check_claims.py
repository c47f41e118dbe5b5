"""Every field of what a file says of itself is checked: its type, that it is there, and its truth.

The tables below name a lie for every field of the schemas. A field that is added to a schema has to
be added here, with a lie that is caught, or with the reason why no file can answer it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import Recipe, prune
from onnxprune.export import KEY, schema
from onnxprune.recipe_tables import SparsityTable
from onnxprune.runtime import CompileOptions, Thresholds, compile_model
from onnxprune.runtime.record import KEY as COMPILED
from onnxprune.runtime.record import schema as compiled_schema
from tests.conftest import labelled_arrays, small_classifier

from .claims import Field, changed, edited, fields, put, read, remove, wrong_values
from .conftest import Command, Outcome

NO_TRACE = "only the run knew it"
HEX = "ab" * 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model with zeros in a layer that stays as it is, and what `prune` makes of it."""
    folder = tmp_path_factory.mktemp("claims")
    proto = small_classifier()
    (weight,) = [t for t in proto.graph.initializer if t.name == "fc.weight"]
    values = 4 * numpy_helper.to_array(weight)
    values[0, :3] = 0
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(proto, folder / "dense.onnx")
    np.savez(folder / "train.npz", **labelled_arrays(64))
    tables = {
        "data": {"train": str(folder / "train.npz")},
        "sparsity": {"target": 0.5, "exclude": ["fc.*"], "scope": "layerwise"},
        "finetune": {"epochs": 0.0},
        "validate": {"latency": False, "threads": 1},
    }
    prune(folder / "dense.onnx", folder / "pruned.onnx", Recipe.from_dict(tables))
    (folder / "policy.toml").write_text("[metadata]\ntrue_to_file = true\n")
    return folder


@pytest.fixture
def check(command: Command, folder: Path) -> Callable[..., Outcome]:
    """`check` with a policy of nothing but `true_to_file`; `inspect` has to say the same."""

    def call(model: Path, *options: object) -> Outcome:
        outcome = command("check", model, "--policy", folder / "policy.toml", "--json", *options)
        if not options:
            facts = command("inspect", model, "--json").expect(0).json
            assert (facts["metadata_true"] is True) == (outcome.code == 0)
        return outcome

    return call


def message(outcome: Outcome) -> str:
    (result,) = outcome.json["checks"]
    return str(result["message"])


def test_the_honest_file_passes(check: Callable[..., Outcome], folder: Path) -> None:
    outcome = check(folder / "pruned.onnx").expect(0)
    assert message(outcome) == "every statement of the metadata that the file can answer holds"
    check(folder / "pruned.onnx", "--baseline", folder / "dense.onnx").expect(0)
    assert read(folder / "pruned.onnx", KEY)["zeros_elsewhere"] == {"fc.weight": 3}


LIES: dict[Field, Callable[[Any, Any], object] | str] = {
    ("schema_version",): put(2),
    ("tool_version",): NO_TRACE,
    ("method",): put("random"),
    ("target_sparsity",): put(0.4),
    ("sparsity",): put(0.6),
    ("pattern",): put("2:4"),
    ("source_sha256",): "the baseline answers it",
    ("payload_sha256",): put(HEX),
    ("recipe",): put({}),
    ("data",): put({"test": {"samples": 1, "digest": HEX, "labelled": True}}),
    ("data", "*", "samples"): NO_TRACE,
    ("data", "*", "digest"): NO_TRACE,
    ("data", "*", "labelled"): NO_TRACE,
    ("data", "*", "held_out"): NO_TRACE,
    ("tensors",): put([]),
    ("tensors", "*", "name"): put("fc.weight"),
    ("tensors", "*", "shape"): put([3, 8, 3, 3]),
    ("tensors", "*", "shape", "*"): put(9),
    ("tensors", "*", "nonzeros"): put(107),
    ("tensors", "*", "sparsity"): put(0.51),
    ("tensors", "*", "pattern"): put("1:3"),
    ("tensors", "*", "mask_sha256"): put(HEX),
    ("zeros_elsewhere",): put({}),
    ("zeros_elsewhere", "*"): put(2),
}


def test_every_field_of_the_metadata_has_a_lie() -> None:
    assert LIES.keys() == {path for path, _ in fields(schema())}


ANSWERABLE = [path for path, lie in LIES.items() if not isinstance(lie, str)]


@pytest.mark.parametrize("path", ANSWERABLE, ids=".".join)
def test_a_lie_is_found(check: Callable[..., Outcome], folder: Path, path: Field) -> None:
    lie = LIES[path]
    assert not isinstance(lie, str)
    model = folder / "pruned.onnx"
    outcome = check(changed(model, KEY, edited(read(model, KEY), path, lie))).expect(1)
    assert message(outcome)


def test_another_source_is_found_by_the_baseline(
    check: Callable[..., Outcome], folder: Path
) -> None:
    claims = read(folder / "pruned.onnx", KEY) | {"source_sha256": HEX}
    model = changed(folder / "pruned.onnx", KEY, claims)
    outcome = check(model, "--baseline", folder / "dense.onnx").expect(1)
    assert f"source_sha256: the metadata say {HEX}" in message(outcome)


@pytest.mark.parametrize(
    ("path", "entry"), [*fields(schema())], ids=[".".join(p) for p, _ in fields(schema())]
)
def test_a_wrong_type_is_found(
    check: Callable[..., Outcome], folder: Path, path: Field, entry: dict[str, Any]
) -> None:
    model = folder / "pruned.onnx"
    claims = read(model, KEY)
    for value in wrong_values(entry):
        outcome = check(changed(model, KEY, edited(claims, path, put(value)))).expect(1)
        found = message(outcome)
        assert path[-1] in found or path[-1] == "*", (value, found)
        assert json.dumps(value) in found, (value, found)
        assert "expected" in found, (value, found)


def test_data_that_no_run_can_have_used_are_found(
    check: Callable[..., Outcome], folder: Path
) -> None:
    model = folder / "pruned.onnx"
    claims = read(model, KEY)
    assert claims["data"]["eval"]["held_out"] is True
    alone = edited(claims, ("data", "train"), remove)
    found = message(check(changed(model, KEY, alone)).expect(1))
    assert "data.eval.held_out: found true, and no training data" in found
    train = edited(claims, ("data", "train", "held_out"), put(False))
    found = message(check(changed(model, KEY, train)).expect(1))
    assert "data.train.held_out: found false, expected null" in found
    silent = edited(claims, ("data", "eval", "held_out"), remove)
    assert "data.eval.held_out: it is missing" in message(
        check(changed(model, KEY, silent)).expect(1)
    )


OPTIONAL = {("zeros_elsewhere",), ("data", "*", "held_out")}
"""What the file need not state: earlier versions left it out, or it is null."""


@pytest.mark.parametrize("path", [p for p in LIES if p[-1] != "*" and p not in OPTIONAL])
def test_a_missing_field_is_found(check: Callable[..., Outcome], folder: Path, path: Field) -> None:
    model = folder / "pruned.onnx"
    outcome = check(changed(model, KEY, edited(read(model, KEY), path, remove))).expect(1)
    assert f"{path[-1]}: it is missing" in message(outcome)


def test_a_file_of_an_earlier_version_passes(check: Callable[..., Outcome], folder: Path) -> None:
    """It states no zeros elsewhere, which the dense model explains, and has fewer keys."""
    claims = read(folder / "pruned.onnx", KEY)
    del claims["zeros_elsewhere"], claims["data"]["train"]["held_out"]
    for table in ("augment", "cascade"):
        del claims["recipe"][table]
    claims["recipe"]["distill"]["cache"] = True
    model = changed(folder / "pruned.onnx", KEY, claims)
    check(model, "--baseline", folder / "dense.onnx").expect(0)
    assert "fc.weight: 3 of 32 values are zero" in message(check(model).expect(1))


RECIPE_LIES: dict[str, Any] = {
    "target": 0.6,
    "method": "random",
    "scope": ("global", NO_TRACE),
    "pattern": "1:3",
    "pattern_choice": "before",
    "include": ["op:Gemm"],
    "exclude": ["conv.*"],
    "min_density": 0.9,
    "min_density_per_tensor": {"conv.*": 0.9},
}


def test_every_key_of_the_recipe_about_sparsity_has_a_lie() -> None:
    assert RECIPE_LIES.keys() == SparsityTable.model_fields.keys()


@pytest.mark.parametrize("key", RECIPE_LIES)
def test_a_recipe_that_contradicts_the_file_is_found(
    check: Callable[..., Outcome], folder: Path, key: str
) -> None:
    model, lie = folder / "pruned.onnx", RECIPE_LIES[key]
    claims = read(model, KEY)
    if not isinstance(lie, tuple):
        lying = edited(claims, ("recipe", "sparsity", key), put(lie))
        check(changed(model, KEY, lying)).expect(1)
    if key not in ("target", "pattern_choice"):
        lacking = edited(claims, ("recipe", "sparsity", key), remove)
        outcome = check(changed(model, KEY, lacking)).expect(1)
        assert f"recipe.sparsity.{key}: it is missing" in message(outcome)
    wrong = edited(claims, ("recipe", "sparsity", key), put(True))
    assert f"recipe.sparsity.{key}" in message(check(changed(model, KEY, wrong)).expect(1))


def test_a_recipe_without_a_table_is_found(check: Callable[..., Outcome], folder: Path) -> None:
    model = folder / "pruned.onnx"
    for table in ("sparsity", "finetune", "schedule"):
        lacking = edited(read(model, KEY), ("recipe", table), remove)
        outcome = check(changed(model, KEY, lacking)).expect(1)
        assert f"recipe.{table}: it is missing" in message(outcome)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("recipe", "finetune", "epochs"), "4", 'recipe.finetune.epochs: found "4", expected'),
        (("recipe", "finetune", "lr"), True, "recipe.finetune.lr: found true, expected"),
        (("recipe", "export"), [], "recipe.export: found [], expected an object"),
        (("recipe", "approved"), {"by": "me"}, "recipe.approved: there is no such table"),
        (("recipe", "sparsity", "pattern"), "2:4", "recipe.sparsity: target 0.5 "),
        (("method",), "\ud800", "the metadata are no JSON object"),
    ],
)
def test_what_is_wrong_in_the_recipe_is_named(
    check: Callable[..., Outcome], folder: Path, path: Field, value: Any, expected: str
) -> None:
    model = folder / "pruned.onnx"
    claims = edited(read(model, KEY), path, put(value))
    if path[-1] == "pattern":
        claims["recipe"]["sparsity"]["target"] = 0.4
        expected = "recipe.sparsity: target 0.4 is below the 0.5 that pattern 2:4 means"
    assert expected in message(check(changed(model, KEY, claims)).expect(1))


def test_a_layerwise_run_has_its_share_in_every_tensor(
    check: Callable[..., Outcome], folder: Path, command: Command
) -> None:
    """Of a global run, whose tensors differ."""
    target = folder / "global.onnx"
    command(
        *("prune", folder / "dense.onnx", "-o", target, "--sparsity", 0.6, "--epochs", 0),
        *("--method", "gmp", "--set", "validate.latency=false"),
    ).expect(0)
    claims = read(target, KEY)
    shares = [tensor["sparsity"] for tensor in claims["tensors"]]
    assert max(shares) - min(shares) > 0.1
    check(target).expect(0)
    claims["recipe"]["sparsity"]["scope"] = "layerwise"
    outcome = check(changed(target, KEY, claims)).expect(1)
    assert "which is not the share of 0.6" in message(outcome)


def test_a_pruned_tensor_that_is_no_longer_listed_is_found(
    check: Callable[..., Outcome], folder: Path, command: Command
) -> None:
    """With a recipe that excludes it, and all sums put right; stated or not."""
    target = folder / "both.onnx"
    command(
        *("prune", folder / "dense.onnx", "-o", target, "--sparsity", 0.6, "--epochs", 0),
        *("--set", "validate.latency=false"),
    ).expect(0)
    claims = read(target, KEY)
    (kept,) = [tensor for tensor in claims["tensors"] if tensor["name"] == "conv.weight"]
    claims["tensors"] = [kept]
    claims["sparsity"] = claims["target_sparsity"] = kept["sparsity"]
    claims["recipe"]["sparsity"] |= {"exclude": ["fc.weight"], "target": kept["sparsity"]}
    assert "zeros_elsewhere: fc.weight" in message(check(changed(target, KEY, claims)).expect(1))
    del claims["zeros_elsewhere"]
    model = changed(target, KEY, claims)
    assert "fc.weight: " in message(check(model).expect(1))
    outcome = check(model, "--baseline", folder / "dense.onnx").expect(1)
    assert "of which the metadata say nothing" in message(outcome)


def _wide_model() -> onnx.ModelProto:
    """Convolutions with all that can be fused, one that stays dense, and a product."""
    rng = np.random.default_rng(0)

    def tensor(name: str, *shape: int, density: float = 1.0) -> TensorProto:
        values = rng.normal(size=shape) * (rng.random(shape) < density)
        return numpy_helper.from_array(values.astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "first.weight", "first.bias"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "depth.weight"], ["d"], "depth", group=32, pads=[1] * 4),
        helper.make_node("Conv", ["d", "second.weight"], ["e"], "second"),
        helper.make_node("Add", ["e", "b"], ["f"]),
        helper.make_node("Conv", ["f", "dense.weight"], ["h"], "dense"),
        helper.make_node("GlobalAveragePool", ["h"], ["p"]),
        helper.make_node("Flatten", ["p"], ["v"]),
        helper.make_node("Gemm", ["v", "fc.weight", "fc.bias"], ["y"], "fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16])],
        [
            tensor("first.weight", 32, 16, 1, 1, density=0.2),
            tensor("first.bias", 32),
            tensor("depth.weight", 32, 1, 3, 3),
            tensor("second.weight", 32, 32, 1, 1, density=0.1),
            tensor("dense.weight", 8, 32, 1, 1),
            tensor("fc.weight", 16, 8, density=0.2),
            tensor("fc.bias", 16),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was pruned and then compiled, with layers of every kind."""
    folder = tmp_path_factory.mktemp("compiled")
    onnx.save(_wide_model(), folder / "dense.onnx")
    recipe = Recipe.from_dict(
        {
            "sparsity": {"target": 0.7, "exclude": ["dense.*"]},
            "finetune": {"epochs": 0.0},
            "validate": {"latency": False, "threads": 1},
        }
    )
    prune(folder / "dense.onnx", folder / "pruned.onnx", recipe)
    result = compile_model(folder / "pruned.onnx", CompileOptions(Thresholds.any_size(0.5)))
    onnx.save(result.with_difference(1e-7).proto, folder / "compiled.onnx")
    (folder / "policy.toml").write_text("[metadata]\ntrue_to_file = true\n")
    return folder / "compiled.onnx"


SPARSE, DENSE = 0, 3
"""Places of a layer with a sparse operator and of one that stays dense."""

RECORD_LIES: dict[Field, list[Any] | str] = {
    ("schema_version",): [2],
    ("tool_version",): NO_TRACE,
    ("source_sha256",): NO_TRACE,
    ("replaced",): [2, 4],
    ("layers",): [[]],
    ("layers", "*", "name"): ["second", "nothing"],
    ("layers", "*", "op_type"): ["Gemm"],
    ("layers", "*", "weight"): ["second.weight", ""],
    ("layers", "*", "shape"): [[16, 32, 1, 1], []],
    ("layers", "*", "shape", "*"): [31],
    ("layers", "*", "sparsity"): [0.95, 0.05, None],
    ("layers", "*", "block"): [None],
    ("layers", "*", "sparse"): [None],
    ("layers", "*", "reason"): [None],
    ("layers", "*", "fused"): [["Gelu"], ["residual", "Gelu"]],
    ("layers", "*", "fused", "*"): ["Tanh"],
    ("layers", "*", "within"): ["second", "nothing"],
    ("layers", "*", "values"): ["float16"],
    ("layers", "*", "x_layout"): ["tiled"],
    ("layers", "*", "y_layout"): [None],
    ("layers", "*", "dense_ms"): [1.0],
    ("layers", "*", "sparse_ms"): [1.0],
    ("samples",): ["split"],
    ("samples_reason",): [""],
    ("largest_difference",): NO_TRACE,
    ("sparsity",): [{}, {"method": "gmp"}],
}
"""None stands for the opposite of what the layer says."""

OPPOSITE: dict[str, Callable[[Any], Any]] = {
    "block": lambda value: 5 - value,
    "sparse": lambda value: not value,
    "reason": lambda value: "" if value else "it does not pay",
    "y_layout": lambda value: "plain" if value == "tiled" else "tiled",
}


def test_the_honest_record_is_true(command: Command, compiled: Path) -> None:
    facts = command("inspect", compiled, "--json").expect(0).json
    assert (facts["compiled_true"], facts["compiled_problems"]) == (True, [])
    layers = facts["compiled"]["layers"]
    assert [layer["sparse"] for layer in layers] == [True, False, True, False, True]
    assert layers[SPARSE]["fused"] == ["Relu"]
    assert layers[2]["fused"] == ["residual"]
    text = command("inspect", compiled).expect(0).out
    assert "record of compiling: every statement that the file can answer holds" in text


def test_every_field_of_the_record_has_a_lie() -> None:
    assert RECORD_LIES.keys() == {path for path, _ in fields(compiled_schema())}


def record_problems(command: Command, model: Path) -> list[str]:
    """What `inspect` finds, which `check` has to find, too."""
    facts = command("inspect", model, "--json").expect(0).json
    problems: list[str] = facts["compiled_problems"]
    assert facts["compiled_true"] is not problems
    policy = model.with_name("policy.toml")
    outcome = command("check", model, "--policy", policy, "--json").expect(1)
    assert all(problem in message(outcome) for problem in problems[:3])
    return problems


RECORD_CASES = [
    (path, place)
    for path, lies in RECORD_LIES.items()
    for place in (SPARSE, DENSE)
    # The layer that stays dense has nothing fused.
    if not isinstance(lies, str) and not (path[-2:] == ("fused", "*") and place == DENSE)
]


@pytest.mark.parametrize(
    ("path", "place"), RECORD_CASES, ids=[f"{'.'.join(p)}-{place}" for p, place in RECORD_CASES]
)
def test_a_lie_of_the_record_is_found(
    command: Command, compiled: Path, path: Field, place: int
) -> None:
    lies = RECORD_LIES[path]
    assert not isinstance(lies, str)
    claims = read(compiled, COMPILED)
    claims["layers"] = claims["layers"][place:] + claims["layers"][:place]
    for lie in lies:

        def edit(holder: Any, key: Any, lie: Any = lie) -> None:
            opposite = OPPOSITE.get(str(key)) if lie is None else None
            value = lie if opposite is None else opposite(holder[key])
            assert holder[key] != value
            holder[key] = value

        problems = record_problems(command, changed(compiled, COMPILED, edited(claims, path, edit)))
        assert problems, lie


@pytest.mark.parametrize(
    ("path", "entry"),
    [*fields(compiled_schema())],
    ids=[".".join(path) for path, _ in fields(compiled_schema())],
)
def test_a_wrong_type_or_nothing_in_the_record_is_found(
    command: Command, compiled: Path, path: Field, entry: dict[str, Any]
) -> None:
    claims = read(compiled, COMPILED)
    for value in wrong_values(entry):
        model = changed(compiled, COMPILED, edited(claims, path, put(value)))
        problems = record_problems(command, model)
        assert any(json.dumps(value) in problem for problem in problems), (value, problems)
    if path[-1] not in ("*", "values", "within"):
        model = changed(compiled, COMPILED, edited(claims, path, remove))
        assert any("missing" in problem for problem in record_problems(command, model))


def test_records_where_none_belongs(command: Command, compiled: Path) -> None:
    """A second one, one that is no JSON, one of a model that is not compiled, and none at all."""
    text = json.dumps(read(compiled, COMPILED))
    assert record_problems(command, changed(compiled, COMPILED, text[:-1] + ',"layers":[]}'))
    pruned, proto = compiled.with_name("pruned.onnx"), onnx.load(compiled)
    proto.metadata_props.add(key=COMPILED, value=text)
    target = compiled.with_name("changed.onnx")
    onnx.save(proto, target)
    assert record_problems(command, target) == ["the model has 2 entries of this kind"]
    del proto.metadata_props[:]
    onnx.save(proto, target)
    assert record_problems(command, target) == [
        "the model has operators of the library, and no record of them"
    ]
    plain = onnx.load(pruned)
    plain.metadata_props.add(key=COMPILED, value=text)
    onnx.save(plain, target)
    problems = record_problems(command, target)
    assert "the model has no sparse operator, so it is not compiled" in problems
    plain = onnx.load(pruned)
    plain.graph.node[0].metadata_props.add(key=COMPILED, value=text)
    onnx.save(plain, target)
    assert "where only the model has one" in record_problems(command, target)[0]


def test_the_source_of_a_compiled_model_cannot_have_been_sparser(
    command: Command, compiled: Path
) -> None:
    claims = read(compiled, COMPILED)
    tensor = claims["sparsity"]["tensors"][0]
    tensor["sparsity"] += 0.05
    (problem,) = record_problems(command, changed(compiled, COMPILED, claims))
    assert problem.startswith("sparsity: first.weight has a sparsity of")
