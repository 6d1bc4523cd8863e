"""Lower precisions of a float32 graph, and the quality gate that they have to pass.

In: a float32 ONNX model. Out: the same in float16, bfloat16 or int8, and its loss of quality on held-out pairs.
"""
