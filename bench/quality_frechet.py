"""Frechet distance of sampled images to the training set of the small model, arm against float.

Sampling thousands of images takes many minutes an arm, so images are kept in a cache folder, in chunks:
an interrupted run goes on where it stopped.
"""

import hashlib
import json

import models
import torch
from quality_metrics import FrechetReference, moments, paired_bootstrap

from tfq.demo.data import load_images
from tfq.pictures import to_uint8

FEATURES = "ResNet-56 trained on CIFAR-10, 64 pooled features"
DATA = models.ROOT.parent / "shared" / "data" / "fashion_mnist.npz"
CHUNK = 100
_FEATURE_BATCH = 500


def fingerprint(root=models.ROOT):
    """Hash of everything that decides what a converted model computes: the package and its kernels."""
    digest = hashlib.sha256()
    for folder in ("tfq", "csrc"):
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and path.suffix in (".py", ".h", ".cpp", ".inc", ".cu", ".cuh"):
                digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def key(**facts):
    """Short name for a set of facts, for cache folders."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def sample_cached(folder, count, unet, scheduler, steps, seed):
    """Images uint8 ``(count, channels, size, size)``; chunk i is made from noise of ``seed + i``.

    Chunks found in `folder` are read, the others sampled and written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chunks = []
    for index, start in enumerate(range(0, count, CHUNK)):
        size = min(CHUNK, count - start)
        path = folder / f"{index:05d}-{size}.pt"
        if path.exists():
            chunks.append(torch.load(path, weights_only=True))
            continue
        chunks.append(to_uint8(models.sample(unet, scheduler, steps, size, seed + index)))
        partial = path.with_suffix(".partial")
        torch.save(chunks[-1], partial)
        partial.replace(path)
    return torch.cat(chunks)


def load_extractor():
    """Function from uint8 grey images ``(n, 1, 32, 32)`` to features ``(n, 64)``; None if not at hand."""
    module = models.load_shared("features/feat.py")
    if module is None:
        return None
    network = module.resnet_cifar(56).requires_grad_(False)

    def extract(images):
        parts = images.split(_FEATURE_BATCH)
        return torch.cat([network.features(p.expand(-1, 3, -1, -1) / 255) for p in parts])

    return extract


def load_reference(cache, extract, data=DATA):
    """Statistics of the whole training set, kept in the folder `cache`."""
    path = cache / "fashion_mnist-resnet56.pt"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(moments(extract(load_images(data, "x_train"))), path)
    return FrechetReference(*torch.load(path, weights_only=True))


class Judge:
    """Compares arms with the float model by Frechet distance.

    Parameters
    ----------
    cache : pathlib.Path
        Folder for images and statistics.
    run : Run
        Float model, scheduler, steps and seed.
    count : int
        Images a side.
    extract : callable
        uint8 images to features.
    reference : FrechetReference
    """

    def __init__(self, cache, model, run, count, extract, reference):
        self.cache, self.model, self.run, self.count = cache, model, run, count
        self.extract, self.reference = extract, reference
        self.images = self._images("float", {}, run.unet)
        self.baseline = extract(self.images)

    def _images(self, arm, facts, unet):
        run = self.run
        name = key(arm=arm, model=self.model, steps=run.steps, seed=run.seed, **facts)
        # Not the noise of the PSNR images: those would count twice.
        first = run.seed + 1_000_000
        return sample_cached(self.cache / name, self.count, unet, run.scheduler, run.steps, first)

    def compare(self, arm, converted):
        """:func:`paired_bootstrap` of an arm's images against the float model's."""
        facts = dict(options=arm.options, calibrated=arm.calibrated, code=fingerprint())
        features = self.extract(self._images(arm.name, facts, converted))
        return paired_bootstrap(self.reference, features, self.baseline) | {"features": FEATURES}

    def scale(self, share=0.05):
        """What the measure makes of one level up or down, of 255, in a random share of the float pixels."""
        generator = torch.Generator().manual_seed(self.run.seed)
        draw = torch.rand(self.images.shape, generator=generator)
        steps = (draw < share / 2).int() - (draw > 1 - share / 2).int()
        noisy = (self.images.int() + steps).clamp(0, 255).to(torch.uint8)
        result = paired_bootstrap(self.reference, self.extract(noisy), self.baseline)
        return result | {"features": FEATURES, "share": share}
