"""A policy that leaves the repository: export, its check, ONNX."""
