"""Lower precisions of a float32 graph, and the gate that they have to pass.

In: a float32 ONNX model. Out: the same in float16, bfloat16 or int8, with what it costs on held-out pairs.
"""
