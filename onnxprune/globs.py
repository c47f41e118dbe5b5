"""How recipes and policies name tensors: globs over their names, or `op:TYPE`."""

from fnmatch import fnmatchcase


def matches(name: str, op_type: str, glob: str) -> bool:
    """Whether a glob names a tensor.

    Args:
        name: Name of the tensor, which as a glob names itself also where it has brackets.
        op_type: Operator that uses it.
        glob: A glob over names, or `op:` and one over operators.
    """
    if glob.startswith("op:"):
        return fnmatchcase(op_type, glob.removeprefix("op:"))
    return name == glob or fnmatchcase(name, glob)
