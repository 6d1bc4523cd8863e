"""A model repository for NVIDIA Triton Inference Server.

In: a bundle. Out: one folder per modality with graph or plan, configuration and warm-up requests.
"""
