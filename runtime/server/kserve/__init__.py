"""The Open Inference Protocol (KServe v2) with its binary extension.

In: tensors in JSON or binary. Out: the same, each modality as a model.
"""
