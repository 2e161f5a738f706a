"""Hugging Face Hub: model cards, push and pull, conversion of pickles, checks of saved pipelines."""
