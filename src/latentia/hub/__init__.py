"""Sharing: model cards, pushing to the Hub, and what a saved pipeline may name."""
