"""Training scripts of every family: run one as a program, or by `latentia train FAMILY`."""
