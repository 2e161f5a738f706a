"""Inference: maximum likelihood by EM, variational Bayes, Gaussian variational inference, the amortisation gap.

Functions of tensors and of log-densities. Each iterative one returns the bound of every iteration, in nats of a datum.
"""
