"""The one exception that a user is meant to read."""


class ReskdError(ValueError):
    """Something the user can mend. The message names the offender (file, value) and the remedy."""
