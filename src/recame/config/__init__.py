"""Every setting of a run, one section for each stage. Imports no torch."""

from __future__ import annotations

from recame.config.data import SYMMETRIES, AugmentConfig, DataConfig, largest_symmetry
from recame.config.distill import DistillConfig
from recame.config.files import as_config, load_config, parse_settings, read_settings, save_config
from recame.config.model import ModelConfig
from recame.config.objective import ObjectiveConfig
from recame.config.phases import FinetuneConfig, ProbeConfig, RetrainConfig
from recame.config.run import EvaluationConfig, RunConfig
from recame.config.section import Section
from recame.config.settings import CONFIG_SCHEMA, Config, parse_config
from recame.config.size import as_size, height_width

__all__ = [
    "CONFIG_SCHEMA",
    "SYMMETRIES",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "DistillConfig",
    "EvaluationConfig",
    "FinetuneConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "ProbeConfig",
    "RetrainConfig",
    "RunConfig",
    "Section",
    "as_config",
    "as_size",
    "height_width",
    "largest_symmetry",
    "load_config",
    "parse_config",
    "parse_settings",
    "read_settings",
    "save_config",
]
