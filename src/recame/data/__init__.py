"""Images on disk -> `Batch`.

The names below are loaded when they are first used, so that `recame.data.decode` and what it
shares with runtimes can be imported without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recame.data.cache import BrokenImage, ImageCache, build_cache
    from recame.data.dataset import (
        BatchDataset,
        InspectionSet,
        SplitView,
        load_inspection_set,
        make_loader,
        to_unit,
    )
    from recame.data.decode import decode_image, native_size, propose_spec
    from recame.data.listing import IMAGE_SUFFIXES, list_images
    from recame.data.longtail import long_tailed_counts, subsample_long_tailed
    from recame.data.manifest import ManifestColumns, read_manifest
    from recame.data.samplers import EpochBatches, SamplerKind, class_prior
    from recame.data.splits import complete_splits, make_splits
    from recame.data.transforms import Augment, Mix, dihedral_view, dihedral_views

_HOME = {
    "IMAGE_SUFFIXES": "listing",
    "Augment": "transforms",
    "BatchDataset": "dataset",
    "BrokenImage": "cache",
    "EpochBatches": "samplers",
    "ImageCache": "cache",
    "InspectionSet": "dataset",
    "ManifestColumns": "manifest",
    "Mix": "transforms",
    "SamplerKind": "samplers",
    "SplitView": "dataset",
    "build_cache": "cache",
    "class_prior": "samplers",
    "complete_splits": "splits",
    "decode_image": "decode",
    "dihedral_view": "transforms",
    "dihedral_views": "transforms",
    "list_images": "listing",
    "load_inspection_set": "dataset",
    "long_tailed_counts": "longtail",
    "make_loader": "dataset",
    "make_splits": "splits",
    "native_size": "decode",
    "propose_spec": "decode",
    "read_manifest": "manifest",
    "subsample_long_tailed": "longtail",
    "to_unit": "dataset",
}

__all__ = [
    "IMAGE_SUFFIXES",
    "Augment",
    "BatchDataset",
    "BrokenImage",
    "EpochBatches",
    "ImageCache",
    "InspectionSet",
    "ManifestColumns",
    "Mix",
    "SamplerKind",
    "SplitView",
    "build_cache",
    "class_prior",
    "complete_splits",
    "decode_image",
    "dihedral_view",
    "dihedral_views",
    "list_images",
    "load_inspection_set",
    "long_tailed_counts",
    "make_loader",
    "make_splits",
    "native_size",
    "propose_spec",
    "read_manifest",
    "subsample_long_tailed",
    "to_unit",
]


def __getattr__(name: str) -> object:
    """Load a public name from its module."""
    if name not in _HOME:
        raise AttributeError(f"module 'recame.data' has no attribute {name!r}")
    value: object = getattr(import_module(f"recame.data.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
