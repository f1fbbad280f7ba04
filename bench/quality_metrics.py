"""What the quality harness measures, as functions of tensors: nothing here runs a model.

Temporal features come as a list over timesteps of lists over ResBlocks of ``(width,)`` tensors.
"""

import dataclasses

import torch

# Percentiles of a 95 % interval.
_LOW, _HIGH = 0.025, 0.975


def feature_errors(features, reference):
    """Error of each temporal feature to the float model's.

    Parameters
    ----------
    features, reference : list of list of Tensor
        ``[timestep][block]``, float ``(width,)``.

    Returns
    -------
    dict of str to Tensor
        float64 ``(timesteps, blocks)``: ``relative`` (|x - r| / |r|), ``cosine``, and ``squared``
        (|x - r|^2, the paper's loss). A reference of zeros has relative error |x| and cosine 1
        where x is zero too, else 0.
    """
    maps = {"relative": [], "cosine": [], "squared": []}
    for row, expected_row in zip(features, reference, strict=True):
        cells = [_cell(x, r) for x, r in zip(row, expected_row, strict=True)]
        for name, values in zip(maps, zip(*cells, strict=True), strict=True):
            maps[name].append(values)
    return {name: torch.tensor(rows, dtype=torch.float64) for name, rows in maps.items()}


def _cell(x, reference):
    x, reference = x.double(), reference.double()
    squared = (x - reference).square().sum()
    if squared == 0:
        return 0.0, 1.0, 0.0
    norm, product = reference.norm(), x.norm() * reference.norm()
    relative = squared.sqrt() / norm if norm > 0 else squared.sqrt()
    cosine = torch.dot(x, reference) / product if product > 0 else torch.zeros(())
    return relative.item(), cosine.item(), squared.item()


def summarize_errors(errors):
    """Means and extremes over all (timestep, block) of :func:`feature_errors`, ready for JSON."""
    return {
        "mean_error": errors["relative"].mean().item(),
        "max_error": errors["relative"].max().item(),
        "mean_cosine": errors["cosine"].mean().item(),
        "min_cosine": errors["cosine"].min().item(),
    }


def moments(features):
    """Mean ``(k,)`` and unbiased covariance ``(k, k)`` of features ``(n, k)``, float64."""
    features = features.double()
    return features.mean(0), torch.cov(features.T, correction=1)


class FrechetReference:
    """Frechet distance of feature sets to a Gaussian.

    ``|m - m_r|^2 + tr(C + C_r - 2 (C_r^1/2 C C_r^1/2)^1/2)``: both roots are of symmetric matrices, so
    eigenvalues are all it takes.

    Parameters
    ----------
    mean, covariance : Tensor
        ``(k,)`` and ``(k, k)``, float64.
    """

    def __init__(self, mean, covariance):
        self.mean, self.trace = mean, covariance.trace()
        values, vectors = torch.linalg.eigh(covariance)
        self.root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    def distance(self, features):
        """Distance of features ``(n, k)``, n >= 2."""
        mean, covariance = moments(features)
        eigenvalues = torch.linalg.eigvalsh(self.root @ covariance @ self.root)
        cross = eigenvalues.clamp(min=0).sqrt().sum()
        return (
            (mean - self.mean).square().sum() + covariance.trace() + self.trace - 2 * cross
        ).item()


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % bounds."""

    value: float
    low: float
    high: float

    def to_dict(self):
        """Plain dict."""
        return dataclasses.asdict(self)


def paired_bootstrap(reference, features, baseline, resamples=1000, seed=0):
    """Frechet distance of two sets whose images belong together pairwise (same noise).

    Each resample draws the same images on both sides. A resample has duplicates, which raises both
    distances: the replicates of each side are moved so that their mean is the distance itself.

    Parameters
    ----------
    reference : FrechetReference
    features, baseline : Tensor
        ``(n, k)``, row i of both from the same noise.
    resamples, seed : int

    Returns
    -------
    dict
        ``distance`` and ``baseline`` (of all images), ``difference`` and ``ratio`` (:class:`Interval`
        of distance to baseline), ``images``, ``resamples``.
    """
    if features.shape != baseline.shape:
        raise ValueError(
            f"paired_bootstrap: both sides need the same images, got {tuple(features.shape)} and "
            f"{tuple(baseline.shape)} features"
        )
    count = features.shape[0]
    generator = torch.Generator().manual_seed(seed)
    distances = torch.tensor(
        [reference.distance(features), reference.distance(baseline)], dtype=torch.float64
    )
    replicates = torch.empty(resamples, 2, dtype=torch.float64)
    for replicate in replicates:
        index = torch.randint(count, (count,), generator=generator)
        replicate[0] = reference.distance(features[index])
        replicate[1] = reference.distance(baseline[index])
    replicates += distances - replicates.mean(0)
    distance, base = distances.tolist()
    return {
        "distance": distance,
        "baseline": base,
        "difference": _interval(distance - base, replicates[:, 0] - replicates[:, 1]).to_dict(),
        "ratio": _interval(distance / base, replicates[:, 0] / replicates[:, 1]).to_dict(),
        "images": count,
        "resamples": resamples,
    }


def _interval(value, replicates):
    low, high = replicates.quantile(torch.tensor([_LOW, _HIGH], dtype=replicates.dtype)).tolist()
    return Interval(value, low, high)
