"""A trained modality as a float32 ONNX graph with golden vectors.

In: a run and items of its data set. Out: `TracedModality`: graph, golden inputs and the outputs of eager PyTorch.
"""
