"""Pretrained encoders as other libraries keep them: one file per library, and its preprocessing read into ours.

In: a name such as ``hf:DIR``, and a modality. Out: the encoder with its weights, the plain options that build it again
without that library's hub, and its preprocessing.
"""
