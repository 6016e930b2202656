"""The one exception whose message is written for the user."""


class ReskdError(ValueError):
    """An error that the user can mend. The message names the file or value at fault, and what to do."""
