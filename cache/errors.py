"""The exceptions whose messages are written for the user."""


class ReskdError(ValueError):
    """An error that the user can mend. The message names the file or value at fault, and what to do."""


class StoreError(ReskdError):
    """A store didn't answer, or refused. What it holds may be whole, so nobody may call it damaged or delete it."""
