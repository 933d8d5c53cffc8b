"""Packages that training needs only with some settings; imports none of them."""

from __future__ import annotations

import importlib.util

from reki_ray.config import RekiConfig
from reki_ray.errors import ConfigError


def check(config: RekiConfig) -> None:
    """Refuse settings whose package is missing, before any stage has taken its time.

    Raises:
        ConfigError: `train.mlflow` is set, and MLflow is not installed.
    """
    if config.train.mlflow is not None and importlib.util.find_spec("mlflow") is None:
        raise ConfigError(
            "train.mlflow needs the package mlflow-skinny, which is not installed",
            where="train.mlflow",
            todo="Install it: pip install 'reki-ray[mlflow]'; or set train.mlflow to null.",
        )
