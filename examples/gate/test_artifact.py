"""The artifact of this project against its policy."""


def test_the_pruned_model_may_ship(onnxprune_artifact):
    """All demands of the policy in pyproject.toml are met."""
    onnxprune_artifact("models/pruned.onnx", baseline="models/dense.onnx", data="models/val.npz")
