"""Requests to the Hub: retries of transient errors, and error messages with a way out."""

import logging
import re
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


def hide_password(text: str) -> str:
    """Hide names and passwords in addresses, as what is printed goes into reports.

    Example:
        >>> hide_password("http://user:secret@host/api does not answer")
        'http://***@host/api does not answer'
    """
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def _hide(record: logging.LogRecord) -> bool:
    record.msg, record.args = hide_password(record.getMessage()), ()
    return True


for _handler in logging.getLogger("huggingface_hub").handlers:  # which log the address at each retry
    _handler.addFilter(_hide)


def retry(call: Callable[[], T], may_repeat: Callable[[BaseException], bool] | None = None) -> T:
    """Call a function up to three times, as long as its error is transient.

    Args:
        call: the request.
        may_repeat: whether to try again after this error; `is_transient` if not given.

    Example:
        >>> retry(lambda: 3)
        3
    """
    for wait in WAITS:
        try:
            return call()
        except Exception as error:
            if not (may_repeat or is_transient)(error):
                raise
            time.sleep(wait)
    return call()


def is_transient(error: BaseException | None) -> bool:
    """Whether the same request may succeed a little later: no connection, a timeout, too many requests, status 5xx."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code in (408, 429) or error.response.status_code >= 500
        if isinstance(error, OfflineModeIsEnabled):
            return False
        if isinstance(error, (HTTPError, ConnectionError)):  # no connection, or it broke
            return True
        error = error.__cause__
    return False


def explain_error(error: BaseException, repo_id: str, *, write: bool) -> str:
    """Explain why a request failed and what to do about it; access tokens and passwords are removed.

    Args:
        error: of huggingface_hub.
        repo_id: the repository.
        write: whether the request was to write.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    text = str(error) if cause is None or cause is error else f"{error} {cause}"
    token = get_token()
    text = hide_password(text.replace(token, "[token]") if token else text)
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    if isinstance(error, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        text += "\nUnset HF_HUB_OFFLINE to ask the Hub."
    elif write and status in (401, 403):
        text += "\nLog in with `hf auth login`, or set HF_TOKEN, with a token that may write to this repository."
    elif isinstance(cause, GatedRepoError):
        text += (
            f"\nIt is gated: ask for access at {hide_password(constants.ENDPOINT)}/{repo_id} in a browser; when it is "
            "granted, log in with `hf auth login`, or set HF_TOKEN, as that user."
        )
    elif status in (401, 403, 404) and not isinstance(cause, RevisionNotFoundError):
        text += (
            "\nCheck the name. If it is private, log in with `hf auth login`, or set HF_TOKEN, with a token that may "
            "read it, or ask its owner for access."
        )
    return text
