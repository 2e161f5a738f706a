"""Upload a saved pipeline and its card to the Hub; never checkpoints, logs or optimizer state."""

from latentia.hub.push import push_to_hub as push

__all__ = ["push"]
