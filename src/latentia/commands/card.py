"""Make the card of a saved pipeline from what its folder holds, and list what the card lacks."""

from latentia.hub.folder_card import folder_card as card

__all__ = ["card"]
