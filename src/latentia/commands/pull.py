"""Fetch a saved pipeline or network from the Hub, all of it or nothing, and check that it loads."""

from latentia.hub.pull import pull as pull
