"""The loggers of the library, whose messages hold no codes of a terminal: names of files of others stand in them."""

import logging

from latentia.errors import printable


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; what it logs is escaped as errors are.

    Example:
        >>> get_logger("latentia.data").name
        'latentia.data'
    """
    logger = logging.getLogger(name)
    if _escape not in logger.filters:
        logger.addFilter(_escape)
    return logger


def _escape(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True
