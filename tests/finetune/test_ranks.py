"""What two processes tell each other, and what one process makes of it alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from onnxprune.errors import MissingDependencyError, OnnxpruneError, RecipeError, TargetError
from onnxprune.finetune.ranks import Ranks
from onnxprune.sparsity import Magnitude, select_masks, select_replicated_masks

pytestmark = pytest.mark.xdist_group("ranks")

ALONE = Ranks(torch.device("cpu"))


def seeded_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "a": torch.randn(30, 20, generator=generator).round(decimals=1),
        "b": torch.randn(7, generator=generator),
    }


def failing(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


def caught(work: Callable[[], Any]) -> BaseException:
    try:
        work()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def described(error: BaseException) -> tuple[str, str, dict[str, Any]]:
    return type(error).__name__, str(error), vars(error)


def exchange(ranks: Ranks) -> dict[str, Any]:
    """Everything that ranks can do, once."""
    me = ranks.rank
    own = torch.tensor([me + 1, 10 * (me + 1)])
    tensors = {
        "float": torch.full((2, 2), float(me)),
        "mask": torch.tensor([me == 0, False]),
        "columns": torch.arange(6.0).reshape(2, 3).t() * (me + 1),
        "empty": torch.zeros(0),
    }
    ranks.broadcast(tensors)
    ranks.barrier()
    weights = seeded_weights()
    cut = (
        {"a": weights["a"][:11], "b": weights["b"]}
        if me == 0
        else {"a": weights["a"][11:], "b": weights["b"][:0]}
    )
    table = RecipeError("wrong", ["one", "two"], where="recipe.toml")
    return {
        "rank": (me, ranks.world, ranks.is_main),
        "sum": ranks.sum(own),
        "sum of floats": ranks.sum(torch.tensor(0.5)),
        "unchanged": own,
        "before": ranks.before(own),
        "gather": ranks.gather(own > 1),
        "any": [ranks.any(False), ranks.any(me == 1), ranks.any(True)],
        "all_same": [ranks.all_same("x"), ranks.all_same(f"x{me}")],
        "broadcast": tensors,
        "object": ranks.broadcast_object({"rank": me}),
        "objects": ranks.gather_objects(("of", me)),
        "on main": ranks.run_on_main(lambda: f"by {me}"),
        "on all": ranks.run_on_all(lambda: f"by {me}"),
        "our error": described(caught(lambda: ranks.run_on_main(failing(table)))),
        "other error": described(caught(lambda: ranks.run_on_main(failing(OSError("disk"))))),
        "interrupt": described(caught(lambda: ranks.run_on_main(failing(KeyboardInterrupt())))),
        "error of rank 1": described(
            caught(lambda: ranks.run_on_all(failing(TargetError("t")) if me else lambda: 1))
        ),
        "parts": select_masks(cut, 290, Magnitude(), floors={"a": 310}, shards=ranks),
        "replicas": select_replicated_masks(weights, 290, Magnitude(), ranks, floors={"a": 310}),
    }


@pytest.fixture(scope="module")
def results(run_processes: Callable[..., list[Any]]) -> list[dict[str, Any]]:
    return run_processes(exchange)


def test_numbers(results: list[dict[str, Any]]) -> None:
    assert [result["rank"] for result in results] == [(0, 2, True), (1, 2, False)]
    for result in results:
        assert result["sum"].tolist() == [3, 30]
        assert float(result["sum of floats"]) == 1.0
        assert result["gather"].tolist() == [[False, True], [True, True]]
        assert result["any"] == [False, True, True]
    assert [result["unchanged"].tolist() for result in results] == [[1, 10], [2, 20]]
    assert [result["before"].tolist() for result in results] == [[0, 0], [1, 10]]
    assert results[1]["before"].dtype == torch.int64


def test_objects(results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        assert result["all_same"] == [True, False]
        assert result["object"] == {"rank": 0}
        assert result["objects"] == [("of", 0), ("of", 1)]
        assert result["on main"] == "by 0"
        assert result["on all"] == f"by {rank}"


def test_tensors_of_rank_0_arrive_in_place_in_any_layout(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["broadcast"]["float"].tolist() == [[0.0, 0.0], [0.0, 0.0]]
        assert result["broadcast"]["mask"].tolist() == [True, False]
        assert result["broadcast"]["columns"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_errors_of_ours_reach_every_rank_whole(results: list[dict[str, Any]]) -> None:
    expected = described(RecipeError("wrong", ["one", "two"], where="recipe.toml"))
    assert [result["our error"] for result in results] == [expected, expected]
    assert expected[2]["problems"] == ["one", "two"]
    target = described(TargetError("t"))
    assert [result["error of rank 1"] for result in results] == [target, target]


def test_other_errors_keep_their_kind_where_they_happened(results: list[dict[str, Any]]) -> None:
    assert [result["other error"][0] for result in results] == ["OSError", "OnnxpruneError"]
    assert results[1]["other error"][1] == "rank 0 failed\n  got: OSError: disk"
    assert [result["interrupt"][0] for result in results] == ["KeyboardInterrupt", "OnnxpruneError"]


def test_masks_of_two_processes_are_those_of_one(results: list[dict[str, Any]]) -> None:
    expected = select_masks(seeded_weights(), 290, Magnitude(), floors={"a": 310})
    for name, mask in expected.items():
        assert torch.equal(torch.cat([result["parts"][name] for result in results]), mask)
        for result in results:
            assert torch.equal(result["replicas"][name], mask)


def test_alone_everything_is_local() -> None:
    tensor = torch.tensor([1, 2])
    assert ALONE.sum(tensor) is tensor
    assert ALONE.before(tensor).tolist() == [0, 0]
    assert ALONE.gather(tensor).tolist() == [[1, 2]]
    assert (ALONE.any(True), ALONE.any(False)) == (True, False)
    assert ALONE.all_same("x")
    assert ALONE.broadcast_object("x") == "x"
    assert ALONE.gather_objects("x") == ["x"]
    assert ALONE.run_on_main(lambda: 5) == ALONE.run_on_all(lambda: 5) == 5
    ALONE.broadcast({"t": tensor})
    ALONE.barrier()
    ALONE.close()
    with pytest.raises(MissingDependencyError):
        ALONE.run_on_main(failing(MissingDependencyError("p", "e", "x")))
    with pytest.raises(OnnxpruneError):
        ALONE.run_on_all(failing(OnnxpruneError("x")))
