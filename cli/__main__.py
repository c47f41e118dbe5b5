"""`python -m onnxprune.cli` is the same as `onnxprune`."""

from onnxprune.cli import main

main()
