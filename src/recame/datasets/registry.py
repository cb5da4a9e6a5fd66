"""Public long-tailed data sets: a local raw copy -> a manifest with the published split.

Nothing is downloaded. A set's module is imported only when the set is prepared; none imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from recame.errors import ConfigError, DataError, PluginError, did_you_mean
from recame.plugins import Plugin, offered
from recame.progress import Progress, say, silent

#: Cut-offs for `LabelSpace.groups`: many above 100 training images, medium 20 to 100, few below 20.
#: The literature of natural-image sets has no fourth group, so no class exceeds the first.
PUBLISHED_GROUPS = (10**9, 100, 19)


@dataclass(frozen=True)
class PublicSet:
    """One public data set with its published protocol.

    Attributes:
        title: its name in tables.
        module: the module that prepares it: a module of this package, or the full path of another.
        raw: the files that `prepare` expects, in words; empty if it needs none.
        source: who published the images and the long-tailed protocol.
        licence: licence of the images, in words.
        cutoffs: cut-offs for `LabelSpace.groups`; None: the paper's (its default).
        function: the function of the module.
        options: values of the function's options that make this set.
        group: the manifest's column that says which images were taken together, by whose values
            `train` may be resampled; empty if there is none.
    """

    title: str
    module: str
    raw: str
    source: str
    licence: str
    cutoffs: tuple[int, int, int] | None = None
    function: str = "prepare"
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    group: str = ""

    def prepare(
        self,
        raw: Path | None,
        out: Path,
        *,
        on_progress: Progress = silent,
        **options: Any,
    ) -> Path:
        """Prepare the set in a folder; nothing is done if the folder holds it already.

        Args:
            raw: the local copy; None for a set that is generated.
            out: a new or empty folder, or one that holds this set already.
            on_progress: called with the progress while images are written.
            options: options of the set's function, in place of the published values.

        Returns:
            The manifest's path: `out/manifest.csv`.

        Raises:
            DataError: the raw files are missing or wrong, or `out` holds something else.
            ConfigError: an option is out of range.
        """
        if self.raw and raw is None:
            raise DataError(
                f"{self.title} is made from a local copy of its files, but no path was given. "
                f"Give the path of {self.raw}."
            )
        home = self.module if "." in self.module else f"recame.datasets.public.{self.module}"
        function = getattr(import_module(home), self.function)
        places = [Path(out)] if raw is None or not self.raw else [Path(raw), Path(out)]
        chosen = {**self.options, **options}
        manifest: Path = function(*places, on_progress=on_progress, **chosen)
        return manifest


_CIFAR = "Krizhevsky, 2009"
_OLTR = "long-tailed by Liu et al., CVPR 2019 (OLTR)"
_NO_LICENCE = "none stated; research use"


def _cifar(num_classes: int, folder: str) -> PublicSet:
    return PublicSet(
        title=f"CIFAR-{num_classes}-LT",
        module="cifar",
        raw=f"{folder} (or the folder that holds it)",
        source=f"{_CIFAR}; long-tailed by Cao et al., NeurIPS 2019 (LDAM-DRW)",
        licence=_NO_LICENCE,
        cutoffs=PUBLISHED_GROUPS,
        options={"num_classes": num_classes, "imbalance": 100},
    )


def _generated(imbalance: int) -> PublicSet:
    return PublicSet(
        title=f"ICDefectSynth ({imbalance})",
        module="ic_defect_synth",
        raw="",
        source="generated here",
        licence="Apache-2.0",
        options={"imbalance": imbalance},
    )


def _large(height: int, width: int) -> PublicSet:
    return PublicSet(
        title=f"ICDefectSynth {height} x {width}",
        module="ic_defect_synth",
        function="prepare_large",
        raw="",
        source="generated here",
        licence="Apache-2.0",
        options={"canvas": (height, width)},
    )


PUBLIC_SETS: Mapping[str, PublicSet] = MappingProxyType(
    {
        "cifar10_lt": _cifar(10, "cifar-10-batches-py"),
        "cifar100_lt": _cifar(100, "cifar-100-python"),
        "cifar10_lt_jpeg": PublicSet(
            title="CIFAR-10-LT (100), JPEG copy",
            module="cifar",
            function="prepare_jpeg",
            raw="cifar10_lt100.zip, or a folder train/<class>/, test/<class>/",
            source=f"{_CIFAR}; re-encoded, with a subset of its own",
            licence=_NO_LICENCE,
            cutoffs=PUBLISHED_GROUPS,
        ),
        "imagenet_lt": PublicSet(
            title="ImageNet-LT",
            module="lists",
            raw="the folder of ImageNet (train/, val/) with ImageNet_LT_train.txt, _val, _test",
            source=f"Russakovsky et al., IJCV 2015; {_OLTR}",
            licence="ImageNet terms: non-commercial research",
            cutoffs=PUBLISHED_GROUPS,
            options={"name": "ImageNet_LT"},
        ),
        "places_lt": PublicSet(
            title="Places-LT",
            module="lists",
            raw="the folder of Places365 with Places_LT_train.txt, _val, _test",
            source=f"Zhou et al., TPAMI 2018; {_OLTR}",
            licence="Places terms: non-commercial research",
            cutoffs=PUBLISHED_GROUPS,
            options={"name": "Places_LT"},
        ),
        "inaturalist_2018": PublicSet(
            title="iNaturalist 2018",
            module="inaturalist",
            raw="the folder of train_val2018/ with train2018.json and val2018.json, or with "
            "iNaturalist18_train.txt and iNaturalist18_val.txt",
            source="Van Horn et al., CVPR 2018",
            licence="each image its own; non-commercial research",
            cutoffs=PUBLISHED_GROUPS,
        ),
        "wm_811k": PublicSet(
            title="WM-811K",
            module="wafer_map",
            raw="LSWMD.pkl (or the folder that holds it)",
            source="Wu, Jang and Chen, IEEE TSM 28(1), 2015",
            licence="free with citation (MIR lab)",
            group="lot",
        ),
        "deeppcb_lt": PublicSet(
            title="DeepPCB-LT",
            module="deeppcb_lt",
            raw="a clone of github.com/tangsanli5201/DeepPCB (the folder that holds PCBData)",
            source="Tang et al., arXiv 1902.06197, 2019; long-tailed here",
            licence="MIT; its README asks for research use",
            group="board",
        ),
        "ic_defect_synth_100": _generated(100),
        "ic_defect_synth_500": _generated(500),
        "ic_defect_synth_large": _large(1024, 1024),
        "ic_defect_synth_line": _large(512, 4096),
    }
)


def built_source(source: Path, builder: Plugin | None, console: Console) -> Path:
    """Make a run's data if a builder is named and the data do not exist yet.

    Args:
        source: the folder to write; existing data are used as they are.
        builder: called with the folder and its `init_args`; it returns the path of a table or of
            the folder; None: the data exist.
        console: where a message goes.

    Raises:
        PluginError: the builder cannot be imported or called, or the path that it returns does not
            exist.
    """
    if builder is None or source.exists():
        return source
    say(console, f"{source} is made by {builder.class_path} (data.builder)")
    made = Path(builder.make("data.builder", source))
    if not made.exists():
        raise PluginError(
            f"data.builder names {builder.class_path}, which returns {made}, but nothing exists "
            "there: let it write the data set and return the path of its table or folder."
        )
    return made


def public_set(name: str) -> PublicSet:
    """Find a public set by its name, also one that an installed package offers.

    Raises:
        ConfigError: no set has that name.
        PluginError: a package offers an object that is not a `PublicSet`.
    """
    if name not in PUBLIC_SETS and (own := offered(name)) is not None:
        made = own.load("builder")
        if not isinstance(made, PublicSet):
            raise PluginError(
                f"builder={name} is {own.class_path}, a {type(made).__name__}: a set for a bench "
                "is a recame.datasets.registry.PublicSet; for recame train name it as data.builder."
            )
        return made
    if name not in PUBLIC_SETS:
        meant = did_you_mean(name, PUBLIC_SETS)
        raise ConfigError(
            f"There is no public set {name!r}{meant and f' ({meant})'}; the public sets are "
            f"{', '.join(PUBLIC_SETS)}. Correct the name, or give the path of a table."
        )
    return PUBLIC_SETS[name]
