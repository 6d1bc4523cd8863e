"""Parts of the training loop that `fluxtalk.train.engine` conducts.

In: batches of features. Out: gradients, new parameters, and the progress of the run.
"""
