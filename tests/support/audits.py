"""The interval that empirical audits of differential privacy stand on."""

from scipy.stats import beta


def clopper_pearson(successes: int, trials: int) -> tuple[float, float]:
    """A two-sided 95% interval of a probability."""
    return (
        float(beta.ppf(0.025, successes, trials - successes + 1)),
        float(beta.ppf(0.975, successes + 1, trials - successes)),
    )
