"""The one rule for seeds."""


def check_seed(seed: int) -> None:
    """Raise ValueError unless random numbers can start from `seed`."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to {2**32 - 1}, got {seed}.")
