"""Files that are damaged, cut or changed beside their metadata."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from onnxprune.export import to_sparse
from onnxprune.model import payload_sha256

from .artifacts import Pair, make_pair
from .gating import gate, not_passed, rules
from .test_gate_tampering import TRUE


def truncate(pair: Pair) -> None:
    pair.pruned.write_bytes(pair.pruned.read_bytes()[:1000])


def not_onnx(pair: Pair) -> None:
    pair.pruned.write_bytes(b"PK\x03\x04 something else")


def lose_external_data(pair: Pair) -> None:
    make_pair(pair.pruned.parent, external=True)
    pair.pruned.with_name("pruned.onnx.data").unlink()


def shorten_external_data(pair: Pair) -> None:
    make_pair(pair.pruned.parent, external=True)
    data = pair.pruned.with_name("pruned.onnx.data")
    data.write_bytes(data.read_bytes()[:-8])


@pytest.mark.parametrize(
    "spoil",
    [truncate, not_onnx, lose_external_data, shorten_external_data, lambda p: p.pruned.unlink()],
)
def test_a_file_that_cannot_be_read_is_3_and_nothing_is_a_pass(
    pair: Pair, spoil: Callable[[Pair], None]
) -> None:
    spoil(pair)
    result = gate(pair)
    assert (result.checks[0].name, result.checks[0].status) == ("model", "error")
    assert {check.status for check in result.checks[1:]} == {"skipped"}
    assert len(result.checks) == 1 + len(list(rules().demands()))
    assert result.exit_code == 3


def test_external_data_changed_in_place_are_noticed(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, external=True)
    data = pair.pruned.with_name("pruned.onnx.data")
    content = bytearray(data.read_bytes())
    content[100] ^= 0x40
    data.write_bytes(bytes(content))
    assert TRUE in not_passed(gate(pair))


def test_payload_digests_do_not_hide_behind_storage(pair: Pair) -> None:
    """Sparse storage of the same values is the same payload."""
    digest = payload_sha256(onnx.load(pair.pruned))
    pair.edit(lambda proto: to_sparse(proto, {"body.weight", "stem.weight"}))
    assert payload_sha256(onnx.load(pair.pruned)) == digest
    assert not_passed(gate(pair)) == {}
