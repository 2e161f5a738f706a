"""Asking the Hub: a few attempts where waiting can help, and reasons in words that say what to do."""

import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

T = TypeVar("T")
WAITS = (2.0, 6.0)  # seconds before the second and the third attempt


def ask(call: Callable[[], T], may_repeat: Callable[[BaseException], bool] | None = None) -> T:
    """The answer of `call`, which is tried three times if the fault may pass.

    Args:
        call: asks the Hub.
        may_repeat: whether to try again after this error; `may_pass` if not given.

    Example:
        >>> ask(lambda: 3)
        3
    """
    for wait in WAITS:
        try:
            return call()
        except Exception as error:
            if not (may_repeat or may_pass)(error):
                raise
            time.sleep(wait)
    return call()


def may_pass(error: BaseException | None) -> bool:
    """Whether the same request may succeed a little later."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code in (408, 429) or error.response.status_code >= 500
        if isinstance(error, OfflineModeIsEnabled):
            return False
        if isinstance(error, (HTTPError, ConnectionError)):  # no connection, or it broke
            return True
        error = error.__cause__
    return False


def reason(error: BaseException, repo_id: str, *, write: bool) -> str:
    """Why the Hub said no, never with a token in it, and what to do about it.

    Args:
        error: of huggingface_hub.
        repo_id: of the repository that was asked for.
        write: whether it was to be written.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    text = str(error) if cause is None or cause is error else f"{error} {cause}"
    token = get_token()
    text = text.replace(token, "[token]") if token else text
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    if isinstance(error, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        text += "\nUnset HF_HUB_OFFLINE to ask the Hub."
    elif write and status in (401, 403):
        text += "\nLog in with `hf auth login`, or set HF_TOKEN, with a token that may write to this repository."
    elif isinstance(cause, GatedRepoError):
        text += (
            f"\nIt is gated: ask for access at {constants.ENDPOINT}/{repo_id} in a browser; when it is granted, log in "
            "with `hf auth login`, or set HF_TOKEN, as that user."
        )
    elif status in (401, 403, 404) and not isinstance(cause, RevisionNotFoundError):
        text += (
            "\nCheck the name. If it is private, log in with `hf auth login`, or set HF_TOKEN, with a token that may "
            "read it, or ask its owner for access."
        )
    return text
