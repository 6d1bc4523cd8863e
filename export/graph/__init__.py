"""From a trained modality to ONNX graphs with golden vectors.

In: an `Embedder` and sample inputs. Out: graphs whose float32 parity was measured, one per precision.
"""
